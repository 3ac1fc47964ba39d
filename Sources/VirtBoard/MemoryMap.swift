/// Where things are on the board: QEMU's riscv64 `virt`.
public enum MemoryMap {
    public static let bootROM: UInt64 = 0x1000
    public static let bootROMSize: UInt64 = 0xf000
    public static let test: UInt64 = 0x10_0000
    public static let rtc: UInt64 = 0x10_1000
    public static let clint: UInt64 = 0x200_0000
    public static let plic: UInt64 = 0xc00_0000
    public static let aplicMachine: UInt64 = 0xc00_0000
    public static let aplicSupervisor: UInt64 = 0xd00_0000
    public static let imsicMachine: UInt64 = 0x2400_0000
    public static let imsicSupervisor: UInt64 = 0x2800_0000
    public static let uart0: UInt64 = 0x1000_0000
    public static let virtio: UInt64 = 0x1000_1000
    public static let virtioStride: UInt64 = 0x1000
    /// The address of a virtio-mmio slot.
    public static func virtioSlot(_ slot: Int) -> UInt64 { virtio + virtioStride * UInt64(slot) }
    public static let firmwareConfiguration: UInt64 = 0x1010_0000
    public static let flash: UInt64 = 0x2000_0000
    public static let flashSize: UInt64 = 0x200_0000
    public static let ram: UInt64 = 0x8000_0000
    public static let pciIO: UInt64 = 0x300_0000
    public static let pciIOSize: UInt64 = 0x1_0000
    public static let pciConfiguration: UInt64 = 0x3000_0000
    public static let pciMemory: UInt64 = 0x4000_0000
    public static let pciMemorySize: UInt64 = 0x4000_0000
    public static let pciHighMemorySize: UInt64 = 0x4_0000_0000
    /// The high window is behind RAM, aligned to its size.
    public static func pciHighMemory(ramSize: UInt64) -> UInt64 {
        (ram + ramSize + pciHighMemorySize - 1) & ~(pciHighMemorySize - 1)
    }
    /// The device tree stays below, for 32-bit firmware.
    static let deviceTreeLimit: UInt64 = 0xc000_0000

    public static let virtioSlots = 8
    /// Interrupt sources.
    public static let virtioInterrupt = 1
    public static let uart0Interrupt = 10
    public static let rtcInterrupt = 11
    /// INTA to INTD.
    public static let pciInterrupt = 0x20

    /// Ticks a second of `time` and `mtime`.
    public static let timebase: UInt32 = 10_000_000
    static let uartClock: UInt32 = 3_686_400
}
