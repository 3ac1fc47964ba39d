import BatonBase

/// The host side of a network card: `-netdev BACKEND,id=ID,…`. Subclasses are
/// the back ends. With the VM lock held.
///
/// A back end has one queue or more: a card with as many pairs of queues gives
/// each pair its own. One that knows of a single queue implements `send(_:)`
/// and `receiveReady()`, any other the methods with a queue's number.
open class NetBackend {
    /// Bytes of the largest frame that a back end takes, as QEMU's NET_BUFSIZE.
    public static let maxFrame = 4096 + 65536

    /// Gets each frame from the host (Ethernet, without FCS); borrowed for the
    /// call. Returns false when the guest has no buffer for it: the back end
    /// keeps it and tries again after `receiveReady`.
    public typealias Receiver = (_ frame: UnsafeRawBufferPointer, _ header: FrameHeader, _ queue: Int) -> Bool

    /// Bytes before a frame, at most.
    public static let maxHeader = 255
    /// Room for one frame and what is before it, which whoever sends or
    /// receives one may use until it returns: there is one for all back ends.
    public nonisolated(unsafe) static let scratch = UnsafeMutableRawBufferPointer.allocate(
        byteCount: maxHeader + maxFrame + 1, alignment: 16)

    /// The `id=` of the option.
    public let id: String
    /// The back end's name as in `-netdev`.
    public let backend: String
    public var receiver: Receiver?
    /// The card's address, six bytes; empty without a card.
    public var cardAddress: [UInt8] = []
    /// Whether the host side is connected, and a callback for its changes.
    open var linkUp: Bool { true }
    public var linkChanged: ((Bool) -> Void)?
    /// How many queues there are. Constant.
    open var queueCount: Int { 1 }
    /// Whether frames have headers, so that either side may leave checksums and
    /// segmentation to the other. Constant.
    open var carriesHeaders: Bool { false }

    public init(id: String, backend: String) {
        self.id = id
        self.backend = backend
    }

    /// Sends one frame given as its parts, in order; borrowed for the call. A
    /// frame that cannot be sent is dropped, as on a wire.
    /// - Parameters:
    ///   - header: all zeroes unless `carriesHeaders`; the guest's, so it may
    ///     contradict the frame.
    ///   - queue: below what `useQueues` was last called with.
    open func send(_ parts: UnsafeBufferPointer<UnsafeRawBufferPointer>, header: FrameHeader, queue: Int) {
        send(parts)
    }
    open func send(_ parts: UnsafeBufferPointer<UnsafeRawBufferPointer>) {}
    /// The guest has room for frames of a queue again; first called when it
    /// begins to run, before which no frame may be taken from the host.
    open func receiveReady(queue: Int) { receiveReady() }
    open func receiveReady() {}
    /// The card uses the first `count` queues from now on: frames come in no
    /// other. It is one at the beginning.
    /// - Parameter count: 1 to `queueCount`.
    /// - Returns: false when the host does not let it; then nothing has changed.
    @discardableResult
    open func useQueues(_ count: Int) -> Bool { count == 1 }
    /// What the host may leave undone in the frames that it gives: nothing at
    /// the beginning. Frames on their way may still be as before.
    /// - Parameter offloads: none unless `carriesHeaders`.
    open func allow(_ offloads: NetOffloads) {}
    open func shutDown() {}
    /// As `Chardev.leaveGuest`.
    open func leaveGuest() {}
    /// Whether `offload` makes a device.
    open var servesItself: Bool { false }
    /// For a back end that serves a card's queues itself, where it would else
    /// be given each frame: the device that does, called once for the card
    /// that uses the back end, which is made of it.
    /// - Parameters:
    ///   - mac: six bytes.
    ///   - features: the feature bits of a virtio network device that the card may offer.
    /// - Returns: nil for a back end that takes frames.
    open func offload(mac: [UInt8], features: UInt64) throws(VMMError) -> (any NetOffload)? { nil }

    /// Hands a frame to the card; one that no card wants is dropped.
    /// - Returns: false when the guest has no buffer for it.
    public func deliver(_ frame: UnsafeRawBufferPointer, header: FrameHeader = FrameHeader(), queue: Int = 0) -> Bool {
        guard let receiver else { return true }
        return receiver(frame, header, queue)
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
