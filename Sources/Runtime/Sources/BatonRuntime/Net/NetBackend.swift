/// The host side of a network card: `-netdev BACKEND,id=ID,…`. Subclasses are
/// the back ends. Main thread only.
open class NetBackend {
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
    /// The guest has room for frames again.
    open func receiveReady() {}
    open func shutDown() {}
}
