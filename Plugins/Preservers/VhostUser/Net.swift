import BatonRuntime

/// `-netdev vhost-user`: the back end of a network card whose queues another
/// process serves, with options as QEMU's.
final class VhostUserNetType: NetBackendType {
    let name = "vhost-user"
    let properties = [
        DeviceProperty("chardev", "str", "id of the -chardev socket to the back end"),
        DeviceProperty("queues", "uint32", "how many pairs of queues"),
        DeviceProperty("vhostforce", "bool", "accepted for QEMU's sake"),
    ]
    private let preserver: VhostUserPreserver

    init(_ preserver: VhostUserPreserver) { self.preserver = preserver }

    func make(id: String, _ options: KeyValueOptions, vm: VirtualMachine) throws(VMMError) -> NetBackend {
        let name = try options.requiredString("chardev")
        let queues = Int(try options.number("queues", in: 1...UInt64(NetKind.maxPairs)) ?? 1)
        // Nothing else than vhost would do anyway.
        _ = try options.bool("vhostforce")
        try options.finish()
        guard let chardev = vm.chardev(name) else { throw VMMError("chardev \"\(name)\" not found") }
        return VhostUserNetBackend(id: id, chardev: chardev, pairs: queues, vm: vm, preserver: preserver)
    }
}

/// Makes the card's device, which has the connection.
private final class VhostUserNetBackend: NetBackend {
    private let chardev: Chardev
    private let pairs: Int
    private let vm: VirtualMachine
    private let preserver: VhostUserPreserver

    init(id: String, chardev: Chardev, pairs: Int, vm: VirtualMachine, preserver: VhostUserPreserver) {
        self.chardev = chardev
        self.pairs = pairs
        self.vm = vm
        self.preserver = preserver
        super.init(id: id, backend: "vhost-user")
    }

    override var queueCount: Int { pairs }

    override var servesItself: Bool { true }

    override func offload(mac: [UInt8], features: UInt64) throws(VMMError) -> (any NetOffload)? {
        let kind = NetKind.make(mac: mac, features: features, pairs: pairs)
        let device = try VhostUserNet(kind: kind, chardev: chardev, vm: vm)
        preserver.add(device)
        return device
    }
}

/// A network card that a vhost-user back end serves.
final class VhostUserNet: VhostUserDevice, NetOffload {
    func usePairs(_ count: Int) { enableQueues(2 * count) }
}

/// virtio-net (virtio 1.3, 5.1): the configuration space is the VMM's.
enum NetKind {
    static let maxPairs = 32
    private static let mac: UInt64 = 1 << 5
    private static let status: UInt64 = 1 << 16
    private static let multiQueue: UInt64 = 1 << 22
    /// CSUM, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, GUEST_ECN, HOST_TSO4,
    /// HOST_TSO6, HOST_ECN, MRG_RXBUF.
    private static let data: UInt64 =
        1 << 0 | 1 << 1 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 15

    /// - Parameters:
    ///   - mac: six bytes.
    ///   - features: those that the card may offer.
    ///   - pairs: of queues, at most; one without VIRTIO_NET_F_MQ.
    static func make(mac: [UInt8], features: UInt64, pairs: Int) -> DeviceKind {
        let pairs = features & multiQueue != 0 ? pairs : 1
        let config =
            Array(mac.prefix(6)) + littleEndianBytes(1 as UInt16) + littleEndianBytes(UInt16(pairs))
            + littleEndianBytes(0 as UInt16)
        return DeviceKind(
            model: "vhost-user-net", deviceID: 1, features: features & (data | (pairs > 1 ? multiQueue : 0)),
            ownFeatures: NetKind.mac | features & status, queueCount: 2 * pairs, queueSize: 256, backendConfigSize: 0,
            config: { _ in config }, isStateless: true, runsEmpty: false, linkStatus: 6)
    }
}
