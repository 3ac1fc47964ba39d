import BatonRuntime

/// virtio-vsock (virtio 1.2, 5.10): the configuration space, which is the guest's address, is the back end's; the queue
/// of events is the core's.
enum VsockKind {
    static let properties = [
        DeviceProperty("chardev", "str", "socket of the back end"),
        DeviceProperty(
            "seqpacket", "OnOffAuto", "whether there are sockets of packets (default what the back end has)"),
    ]
    /// VIRTIO_VSOCK_F_STREAM, F_SEQPACKET, F_NO_IMPLIED_STREAM.
    private static let features: UInt64 = 1 << 0 | seqpacket | 1 << 2
    static let seqpacket: UInt64 = 1 << 1

    static func make(_ options: DeviceOptions) throws(VMMError) -> DeviceKind {
        let wanted = try options.options.onOffAuto("seqpacket")
        return DeviceKind(
            model: "vhost-user-vsock", deviceID: 19, features: features, withheld: wanted == false ? seqpacket : 0,
            required: wanted == true ? seqpacket : 0, queueCount: 2, queueSize: 128, backendConfigSize: 8,
            config: { $0 }, isStateless: true, runsEmpty: false, losesConnections: true)
    }
}

/// A device of sockets that a vhost-user back end serves. Over an update that keeps the back end the guest's
/// connections go on; where they cannot, the guest is told to give them up.
final class VhostUserVsock: VhostUserDevice, VsockOffload {
    override func lostConnections() { (host as? any VsockOffloadHost)?.lostConnections() }
}
