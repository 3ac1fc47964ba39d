import BatonRuntime

/// A range of the memory map that a guest gets ("e820", after the BIOS call).
public struct E820Entry: Equatable {
    public enum Kind: UInt32 {
        case ram = 1
        case reserved = 2
    }

    public var range: Range<UInt64>
    public var kind: Kind

    /// As in the zero page and in `etc/e820`: start, size, type; 20 bytes.
    var bytes: [UInt8] {
        littleEndianBytes(range.lowerBound) + littleEndianBytes(range.upperBound - range.lowerBound)
            + littleEndianBytes(kind.rawValue)
    }
}

/// The memory map for firmware and for kernels.
public enum E820 {
    /// Where the memory of the PC's graphics and ROMs is. No RAM for a kernel, although there is some: what a direct
    /// start puts there must stay.
    static let legacy: Range<UInt64> = 0xa_0000..<0x10_0000

    /// What firmware is told: RAM only, as in QEMU; what else there is it knows.
    public static func forFirmware(_ memory: RAMLayout) -> [E820Entry] {
        [memory.low, memory.high].filter { !$0.isEmpty }.map { E820Entry(range: $0, kind: .ram) }
    }

    /// What a kernel is told that starts without firmware.
    /// - Parameters:
    ///   - memory: RAM, at least 1 MiB.
    ///   - reserved: address ranges without RAM that are in use, such as PCI's configuration space.
    public static func forKernel(_ memory: RAMLayout, reserved: [Range<UInt64>]) -> [E820Entry] {
        var entries = [
            E820Entry(range: 0..<legacy.lowerBound, kind: .ram), E820Entry(range: legacy, kind: .reserved),
            E820Entry(range: legacy.upperBound..<memory.low.upperBound, kind: .ram),
        ]
        entries += reserved.map { E820Entry(range: $0, kind: .reserved) }
        entries.append(E820Entry(range: memory.high, kind: .ram))
        return entries.filter { !$0.range.isEmpty }.sorted { $0.range.lowerBound < $1.range.lowerBound }
    }
}
