import BatonBase
import Glibc

/// Takes frames from a descriptor that gives one with each read: a network
/// interface, a datagram socket. Keeps the one that the guest has no buffer
/// for, and reads no more until it is gone: the rest waits in the kernel.
public final class FrameReader {
    /// Frames taken in a row before anybody else has a turn.
    private static let burst = 64
    /// Borrowed; non-blocking.
    public let fd: Int32
    /// The frame that the guest had no buffer for; empty when there is none.
    public private(set) var held: [UInt8]
    public private(set) var heldHeader: FrameHeader
    private let loop: EventLoop
    private let headerSize: Int
    private let deliver: (UnsafeRawBufferPointer, FrameHeader) -> Bool
    private let failed: (VMMError) -> Void
    private var isWatched = false
    private var isBroken = false

    /// Reads nothing until `ready`.
    /// - Parameters:
    ///   - headerSize: bytes before each frame, of which the first are its
    ///     header.
    ///   - held: a frame that the process before held.
    ///   - deliver: hands a frame to the guest; false when there is no buffer.
    ///   - failed: is told why nothing can be read any more.
    public init(
        fd: Int32, loop: EventLoop, headerSize: Int = 0, held: [UInt8] = [], heldHeader: FrameHeader = FrameHeader(),
        deliver: @escaping (UnsafeRawBufferPointer, FrameHeader) -> Bool, failed: @escaping (VMMError) -> Void
    ) {
        self.fd = fd
        self.loop = loop
        self.headerSize = headerSize
        self.held = held
        self.heldHeader = heldHeader
        self.deliver = deliver
        self.failed = failed
        precondition(headerSize <= NetBackend.maxHeader)
    }

    deinit { stop() }

    /// The guest has room: the frame that is held goes first.
    public func ready() {
        guard !isBroken else { return }
        if !held.isEmpty {
            let frame = held
            guard frame.withUnsafeBytes({ deliver($0, heldHeader) }) else { return }
            held = []
        }
        guard !isWatched else { return }
        do throws(VMMError) {
            try loop.watch(fd, .readable) { [unowned self] _ in read() }
            isWatched = true
        } catch {
            end(error)
        }
    }

    /// Drops the frame that is held: nothing is taken until `ready`.
    public func discard() {
        stop()
        held = []
    }

    /// Before the descriptor is closed.
    public func stop() {
        guard isWatched else { return }
        loop.unwatch(fd)
        isWatched = false
    }

    /// What comes from the host, apart from `NetBackend.scratch`: a card may
    /// send while it is given a frame.
    private nonisolated(unsafe) static let room = UnsafeMutableRawBufferPointer.allocate(
        byteCount: NetBackend.scratch.count, alignment: 16)

    private func read() {
        // One more, to tell a frame that is too long.
        let buffer = UnsafeMutableRawBufferPointer(
            rebasing: FrameReader.room[..<(headerSize + NetBackend.maxFrame + 1)])
        for _ in 0..<FrameReader.burst {
            let count = retryingInterrupts { Glibc.read(fd, buffer.baseAddress, buffer.count) }
            guard count >= 0 else {
                // A datagram's refusal by its receiver is told to the sender here.
                if errno == ECONNREFUSED { continue }
                if !isTransientFailure() { end(.system("read failed")) }
                return
            }
            // Too short for its header, or too long: not a frame.
            guard count > headerSize, count < buffer.count else { continue }
            let header = FrameHeader(UnsafeRawBufferPointer(rebasing: buffer[..<headerSize]))
            let frame = UnsafeRawBufferPointer(rebasing: buffer[headerSize..<count])
            if !deliver(frame, header) {
                held = Array(frame)
                heldHeader = header
                return stop()
            }
            // epoll tells of what is left again.
            if !loop.mayGoOn(after: 1 << 14 + count) { return }
        }
    }

    private func end(_ error: VMMError) {
        stop()
        isBroken = true
        failed(error)
    }
}
