import BatonRuntime

/// What tells one kind of vhost-user device from another.
struct DeviceKind {
    /// In checkpoints and messages: `vhost-user-blk`.
    let model: String
    /// virtio 1.3, 5.
    let deviceID: UInt32
    /// Device features that may be offered when the back end has them.
    let features: UInt64
    /// Features that go to the driver by options or number of queues.
    var withheld: UInt64 = 0
    /// Features that a back end must have.
    var required: UInt64 = 0
    /// Features that are the VMM's own, offered whatever the back end has.
    var ownFeatures: UInt64 = 0
    let queueCount: Int
    /// What a back end has to have of what it counts (GET_QUEUE_NUM): queues,
    /// or pairs of them.
    var countedQueues: Int { losesConnections ? 1 : linkStatus == nil ? queueCount : queueCount / 2 }
    /// How many of them the back end may use as long as the driver has not
    /// said: of a network card one pair.
    var queuesAtFirst: Int { linkStatus == nil ? queueCount : 2 }
    let queueSize: UInt16
    /// Bytes of the configuration space that the back end has; 0: none.
    let backendConfigSize: Int
    /// The configuration space for the driver, from the back end's.
    let config: ([UInt8]) -> [UInt8]
    /// Bytes of it that the driver may write.
    var writableConfig: Range<Int> = 0..<0
    /// Whether the queues' state is all there is: then a back end can be
    /// stopped, and another go on where it was.
    let isStateless: Bool
    /// Whether a back end answers every request in its own time, so that the
    /// queues run empty when the guest stops.
    let runsEmpty: Bool
    /// Where a network card's configuration space says whether there is a link,
    /// which is the connection to the back end; nil for other devices. Frames
    /// that a back end had in hand when it went are lost, as on any wire.
    var linkStatus: Int?
    /// Whether the device is one of sockets (vsock), whose connections go with the back end: the driver is told, and
    /// nothing that a back end had in hand is carried out by the next one. Such back ends do not count their queues.
    var losesConnections = false

    /// Features of virtio that concern only rings and so the back end.
    private static let ringFeatures: UInt64 = 1 << 28 | 1 << 29 | 1 << 32

    func offered(_ backend: BackendProperties) -> UInt64 {
        backend.features & (features | DeviceKind.ringFeatures) & ~withheld | ownFeatures
    }
}
