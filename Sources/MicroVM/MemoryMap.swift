/// Where things are on the board: QEMU's `microvm` (include/hw/i386/microvm.h, hw/i386/microvm.c).
public enum MemoryMap {
    // MARK: Memory

    /// RAM below 4 GiB ends here at the latest; what is more begins at `highRAM`.
    public static let lowRAMLimit: UInt64 = 0xc000_0000
    public static let highRAM: UInt64 = 0x1_0000_0000
    public static let pciMemory: UInt64 = 0xc000_0000
    public static let pciMemorySize: UInt64 = 0x2000_0000
    /// PCIe ECAM: 256 buses.
    public static let pciConfiguration: UInt64 = 0xe000_0000
    public static let pciConfigurationSize: UInt64 = 0x1000_0000
    /// The generic event device: the register that says which event it is.
    public static let ged: UInt64 = 0xfea0_0000
    public static let gedSize: UInt64 = 4
    /// Its sleep control, sleep status and reset registers, one byte each.
    public static let gedRegisters: UInt64 = 0xfea0_0200
    public static let gedRegistersSize: UInt64 = 3
    public static let virtio: UInt64 = 0xfeb0_0000
    public static let virtioStride: UInt64 = 512
    /// The address of a virtio-mmio slot.
    public static func virtioSlot(_ slot: Int) -> UInt64 { virtio + virtioStride * UInt64(slot) }
    public static let ioapic: UInt64 = 0xfec0_0000
    public static let ioapic2: UInt64 = 0xfec1_0000
    public static let ioapicSize: UInt64 = 0x1000
    public static let localAPIC: UInt64 = 0xfee0_0000
    /// Firmware ends at 4 GiB, and begins here at the earliest: KVM's own pages lie below.
    public static let firmwareStart: UInt64 = 0xff00_0000
    public static let firmwareEnd: UInt64 = 0x1_0000_0000

    // MARK: Ports

    public static let rtcPort: UInt64 = 0x70
    public static let serialPort: UInt64 = 0x3f8
    public static let panicPort: UInt64 = 0x505
    public static let firmwareConfigurationPort: UInt64 = 0x510

    // MARK: Interrupts

    public static let serialInterrupt = 4
    public static let rtcInterrupt = 8
    public static let gedInterrupt = 9
    /// Pins of an IOAPIC. The second one's come after the first one's.
    public static let ioapicPins = 24

    /// The window for PCI devices above 4 GiB: the topmost quarter of what the CPU can address.
    /// - Parameter physicalAddressBits: as CPUID 0x80000008 says.
    /// - Returns: nil when there is no room for it.
    public static func pciHighMemory(physicalAddressBits: Int, ram: RAMLayout) -> Range<UInt64>? {
        let end: UInt64 = 1 << UInt64(min(max(physicalAddressBits, 32), 52))
        let start = end - end / 4
        return start >= max(highRAM, ram.high.upperBound) ? start..<end : nil
    }
}

/// How the guest's RAM lies in its address space.
public struct RAMLayout: Equatable {
    /// Bytes.
    public let size: UInt64
    /// From 0; at most 3 GiB.
    public let low: Range<UInt64>
    /// From 4 GiB; empty when all lies below.
    public let high: Range<UInt64>

    /// - Parameter size: bytes, less than 2^52.
    public init(size: UInt64) {
        self.size = size
        low = 0..<min(size, MemoryMap.lowRAMLimit)
        high = MemoryMap.highRAM..<MemoryMap.highRAM + (size - low.upperBound)
    }

    /// Whether all of `[address, address + length)` is RAM.
    func contains(_ address: UInt64, length: UInt64) -> Bool {
        [low, high].contains { range in
            address >= range.lowerBound && address <= range.upperBound && length <= range.upperBound - address
        }
    }
}

/// Which interrupts (global system interrupts) devices have: it depends on what else there is.
public struct InterruptLayout: Equatable {
    /// 1 or 2.
    public let ioapicCount: Int
    /// Of virtio-mmio slot 0; the others follow.
    public let virtioBase: Int
    public let virtioSlots: Int
    /// Of INTA; INTB to INTD follow. Nil where there cannot be a PCI bus.
    public let pciBase: Int?

    /// - Parameters:
    ///   - acpi: `acpi=`.
    ///   - secondIOAPIC: `ioapic2=`, which counts with ACPI only.
    public init(acpi: Bool, secondIOAPIC: Bool) {
        switch (acpi, secondIOAPIC) {
        case (true, true): (ioapicCount, virtioBase, virtioSlots, pciBase) = (2, 24, 24, 16)
        case (true, false): (ioapicCount, virtioBase, virtioSlots, pciBase) = (1, 16, 8, 12)
        case (false, _): (ioapicCount, virtioBase, virtioSlots, pciBase) = (1, 5, 8, nil)
        }
    }
}
