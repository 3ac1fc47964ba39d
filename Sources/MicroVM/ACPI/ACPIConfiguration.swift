/// What the ACPI tables describe.
public struct ACPIConfiguration {
    /// The PCI host bridge and its windows.
    public struct PCI {
        public var memory = MemoryMap.pciMemory..<MemoryMap.pciMemory + MemoryMap.pciMemorySize
        /// See `MemoryMap.pciHighMemory`; nil for none.
        public var highMemory: Range<UInt64>?
        /// Of INTA; INTB to INTD follow.
        public var interruptBase: Int

        public init(highMemory: Range<UInt64>?, interruptBase: Int) {
            self.highMemory = highMemory
            self.interruptBase = interruptBase
        }
    }

    /// APIC ids of the CPUs, the boot CPU first.
    public var apicIDs: [UInt32]
    public var interrupts: InterruptLayout
    /// Whether there is a pair of 8259 interrupt controllers, which a kernel then turns off.
    public var hasPIC = true
    /// Whether interrupt 0, the PIT's, arrives at pin 2 of the IOAPIC, as on a PC.
    public var hasTimerOverride = true
    public var hasSerial = true
    public var hasRTC = false
    /// The virtio-mmio slots that have a device.
    public var virtioSlots: [Int] = []
    /// The port of a pvpanic device; nil for none.
    public var panicPort: UInt64?
    /// Nil with `pcie=off`.
    public var pci: PCI?

    public init(apicIDs: [UInt32], interrupts: InterruptLayout) {
        self.apicIDs = apicIDs
        self.interrupts = interrupts
    }
}
