import BatonRuntime

/// A capability of the extended configuration space (PCI Express 5.0, 7.6).
struct VFIOExtendedCapability {
    let id: UInt32
    let offset: Int
    /// Where the next one begins, or the space ends.
    let end: Int
    /// Id and version, without what follows.
    let header: UInt32

    static let resizableBar: UInt32 = 0x15
    /// Alternative routing ids, virtual functions and process address spaces
    /// are of the host's bus and IOMMU, which the guest does not have; 0 is
    /// what the kernel hides itself.
    private static let hidden: Set<UInt32> = [0, 0x0e, 0x10, 0x1b]

    var isHidden: Bool { Self.hidden.contains(id) }

    private static func long(_ config: [UInt8], _ at: Int) -> UInt32 {
        guard at >= 0, at <= config.count - 4 else { return 0 }
        return (0..<4).reduce(0) { $0 | UInt32(config[at + $1]) << UInt32(8 * $1) }
    }

    /// The list, in its order; it ends where it makes no sense.
    static func all(_ config: [UInt8]) -> [VFIOExtendedCapability] {
        var offsets: [Int] = []
        var at = PCIRegister.extendedStart
        let first = long(config, at)
        guard first != 0, first != UInt32.max else { return [] }
        while at >= PCIRegister.extendedStart, at < config.count, !offsets.contains(at) {
            offsets.append(at)
            at = Int(long(config, at) >> 20 & 0xffc)
        }
        let sorted = offsets.sorted()
        return offsets.map { offset in
            let raw = long(config, offset)
            return VFIOExtendedCapability(
                id: raw & 0xffff, offset: offset, end: sorted.first { $0 > offset } ?? config.count,
                header: raw & 0xf_ffff)
        }
    }

    /// Registers of BARs that could be resized, with just their size of now:
    /// another one would need another place on the host's bus.
    /// - Returns: nil when they cannot be shown so.
    func resizableBars(_ config: [UInt8]) -> [(offset: Int, value: UInt32)]? {
        guard id == Self.resizableBar else { return nil }
        let count = Int(Self.long(config, offset + 8) >> 5 & 7)
        guard (1...6).contains(count), offset + 4 + 8 * count <= end else { return nil }
        var registers: [(offset: Int, value: UInt32)] = []
        for index in 0..<count {
            let at = offset + 4 + 8 * index
            let control = Self.long(config, at + 4)
            let size = control >> 8 & 0x3f
            // The register has bits for 1 MiB to 128 TiB.
            guard size <= 27 else { return nil }
            registers.append((at, 1 << (size + 4)))
            registers.append((at + 4, control & 0x3fe7))
        }
        return registers
    }
}
