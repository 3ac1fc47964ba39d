/// The host side of a network card: `-netdev BACKEND,id=ID,…`. Subclasses are
/// the back ends. Main thread only.
open class NetBackend {
    /// Bytes of the largest frame that a back end takes, as QEMU's NET_BUFSIZE.
    public static let maxFrame = 4096 + 65536

    /// The `id=` of the option.
    public let id: String
    /// The back end's name as in `-netdev`.
    public let backend: String
    /// Gets each frame from the host (Ethernet, without FCS); borrowed for the
    /// call. Returns false when the guest has no buffer for it: the back end
    /// keeps it and tries again after `receiveReady`.
    public var receiver: ((UnsafeRawBufferPointer) -> Bool)?
    /// Whether the host side is connected, and a callback for its changes.
    open var linkUp: Bool { true }
    public var linkChanged: ((Bool) -> Void)?

    public init(id: String, backend: String) {
        self.id = id
        self.backend = backend
    }

    /// Sends one frame given as its parts, in order; borrowed for the call. A
    /// frame that cannot be sent is dropped, as on a wire.
    open func send(_ parts: UnsafeBufferPointer<UnsafeRawBufferPointer>) {}
    /// The guest has room for frames again; first called when it begins to
    /// run, before which no frame may be taken from the host.
    open func receiveReady() {}
    open func shutDown() {}

    /// Hands a frame to the card; one that no card wants is dropped.
    /// - Returns: false when the guest has no buffer for it.
    public func deliver(_ frame: UnsafeRawBufferPointer) -> Bool {
        guard let receiver else { return true }
        return receiver(frame)
    }

    /// Copies a frame's parts behind each other.
    /// - Returns: where it ends in `target`; nil when there is no room for it.
    public static func gather(
        _ parts: UnsafeBufferPointer<UnsafeRawBufferPointer>, into target: UnsafeMutableRawBufferPointer, at offset: Int
    ) -> Int? {
        var end = offset
        for part in parts {
            guard part.count <= target.count - end else { return nil }
            if let from = part.baseAddress, let to = target.baseAddress {
                (to + end).copyMemory(from: from, byteCount: part.count)
            }
            end += part.count
        }
        return end
    }
}
