import BatonRuntime

/// CPUs and interrupts for a kernel that starts without ACPI and without firmware (Intel's MultiProcessor
/// Specification 1.4): without this it would use one CPU and no IOAPIC.
public struct MPTable {
    /// APIC ids of the CPUs, the boot CPU first. Those above 254 have no place here.
    public var apicIDs: [UInt32]
    /// Interrupts of the virtio-mmio devices, which are level triggered.
    public var levelInterrupts: [Int]
    /// Whether interrupt 0, the PIT's, arrives at pin 2 of the IOAPIC, as on a PC.
    public var hasTimerOverride: Bool

    public init(apicIDs: [UInt32], levelInterrupts: [Int], hasTimerOverride: Bool) {
        self.apicIDs = apicIDs
        self.levelInterrupts = levelInterrupts
        self.hasTimerOverride = hasTimerOverride
    }

    private static let isaBus: UInt8 = 0
    private static let isaInterrupts = 16
    private static let lastAPIC: UInt32 = 254
    private static let conforming: UInt16 = 0
    private static let levelActiveHigh: UInt16 = 0b1101

    /// Kinds of interrupts.
    private enum Kind {
        static let vectored: UInt8 = 0
        static let nmi: UInt8 = 1
        static let external: UInt8 = 3
    }

    /// The pointer that kernels look for, and the table behind it.
    /// - Parameter address: a multiple of 16 where kernels look: from 0xf0000 up to 1 MiB.
    func bytes(at address: UInt64) -> [UInt8] {
        let pointerSize: UInt64 = 16
        let (units, revision, checksum): (UInt8, UInt8, UInt8) = (1, 4, 0)
        var pointer = Array("_MP_".utf8) + littleEndianBytes(UInt32(address + pointerSize))
        pointer += [units, revision, checksum, 0, 0, 0, 0, 0]
        pointer[10] = ACPITable.checksum(pointer[...])

        let entries = entries
        let headerSize = 44
        let size = headerSize + entries.reduce(0) { $0 + $1.count }
        var table = Array("PCMP".utf8) + littleEndianBytes(UInt16(size)) + [revision, checksum]
        table += Array("BATON   MICROVM     ".utf8)
        // No table of the maker's own.
        table += [UInt8](repeating: 0, count: 6) + littleEndianBytes(UInt16(entries.count))
        table += littleEndianBytes(UInt32(MemoryMap.localAPIC)) + [0, 0, 0, 0]
        table += entries.flatMap { $0 }
        table[7] = ACPITable.checksum(table[...])
        return pointer + table
    }

    private var entries: [[UInt8]] {
        let everyAPIC: UInt8 = 0xff
        let (localAPICVersion, ioapicVersion): (UInt8, UInt8) = (0x14, 0x11)
        let (enabled, bootCPU): (UInt8, UInt8) = (1, 2)
        let ids = apicIDs.filter { $0 <= MPTable.lastAPIC }.map { UInt8($0) }
        // The IOAPIC has an id of its own where there is one left.
        let ioapicID = UInt8(truncatingIfNeeded: min((ids.max() ?? 0).advanced(by: 1), 0xfe))
        var entries: [[UInt8]] = []
        for (index, id) in ids.enumerated() {
            let flags = enabled | (index == 0 ? bootCPU : 0)
            entries.append([0, id, localAPICVersion, flags] + [UInt8](repeating: 0, count: 16))
        }
        entries.append([1, MPTable.isaBus] + Array("ISA   ".utf8))
        entries.append([2, ioapicID, ioapicVersion, enabled] + littleEndianBytes(UInt32(MemoryMap.ioapic)))
        for interrupt in 0..<MPTable.isaInterrupts {
            // Pin 2 is taken by the timer; a PC's interrupt 2 is the second PIC.
            if hasTimerOverride, interrupt == 2 { continue }
            let pin = hasTimerOverride && interrupt == 0 ? 2 : UInt8(interrupt)
            let flags = levelInterrupts.contains(interrupt) ? MPTable.levelActiveHigh : MPTable.conforming
            entries.append(
                [3, Kind.vectored] + littleEndianBytes(flags) + [MPTable.isaBus, UInt8(interrupt), ioapicID, pin])
        }
        for (kind, input) in [(Kind.external, 0 as UInt8), (Kind.nmi, 1)] {
            entries.append([4, kind] + littleEndianBytes(MPTable.conforming) + [MPTable.isaBus, 0, everyAPIC, input])
        }
        return entries
    }
}
