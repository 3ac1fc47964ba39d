import BatonRuntime

/// Which frames a card takes, as the driver says on the control queue (virtio
/// 1.3, 5.1.6.5.1 and 5.1.6.5.2). Before the driver says anything it takes all.
struct ReceiveFilter {
    /// Addresses in a table; a longer one stands for every address.
    static let maxAddresses = 64

    struct Mode: OptionSet {
        let rawValue: UInt8
        /// In the order of the commands' numbers.
        static let promiscuous = Mode(rawValue: 1)
        static let allMulticast = Mode(rawValue: 2)
        static let allUnicast = Mode(rawValue: 4)
        static let noMulticast = Mode(rawValue: 8)
        static let noUnicast = Mode(rawValue: 16)
        static let noBroadcast = Mode(rawValue: 32)
        /// A table was too long.
        static let unicastOverflow = Mode(rawValue: 64)
        static let multicastOverflow = Mode(rawValue: 128)
    }

    private static let broadcast: UInt64 = 0xffff_ffff_ffff
    private static let group: UInt64 = 1 << 40

    var mode: Mode = .promiscuous
    /// Ethernet addresses, the first byte in bits 47 to 40.
    var address: UInt64
    var unicast: [UInt64] = []
    var multicast: [UInt64] = []

    static func address(_ bytes: some Sequence<UInt8>) -> UInt64 { bytes.reduce(0) { $0 << 8 | UInt64($1) } }

    func accepts(_ frame: UnsafeRawBufferPointer) -> Bool {
        if mode.contains(.promiscuous) { return true }
        guard frame.count >= 6 else { return false }
        let target = ReceiveFilter.address(frame[..<6])
        if target == ReceiveFilter.broadcast { return !mode.contains(.noBroadcast) }
        if target & ReceiveFilter.group != 0 {
            if mode.contains(.noMulticast) { return false }
            return !mode.isDisjoint(with: [.allMulticast, .multicastOverflow]) || multicast.contains(target)
        }
        if mode.contains(.noUnicast) { return false }
        return target == address || !mode.isDisjoint(with: [.allUnicast, .unicastOverflow]) || unicast.contains(target)
    }

    // MARK: State

    func save(to writer: inout StateWriter) {
        writer.put("mac", address)
        writer.put("rx-mode", UInt64(mode.rawValue))
        writer.put("rx-unicast", unicast)
        writer.put("rx-multicast", multicast)
    }

    init(address: UInt64) { self.address = address }

    init(from reader: StateReader) throws(VMMError) {
        address = try reader.unsigned("mac", in: 0...ReceiveFilter.broadcast)
        mode = Mode(rawValue: UInt8(try reader.unsigned("rx-mode", in: 0...255)))
        unicast = try reader.array("rx-unicast", count: 0...ReceiveFilter.maxAddresses)
        multicast = try reader.array("rx-multicast", count: 0...ReceiveFilter.maxAddresses)
    }
}
