import BatonRuntime
import Glibc

/// Ethernet frames in a byte stream, each after its length in four big-endian
/// bytes: what has come in pieces, and what the peer has not taken yet.
final class FrameStream {
    /// Why a connection is at its end.
    struct End {
        let reason: String
    }

    /// Bytes that wait for a slow peer; beyond that, frames are dropped.
    private static let maxBacklog = 1 << 20
    static let maxReceived = 2 * (4 + NetBackend.maxFrame)
    static let maxUnsent = maxBacklog + 4 + NetBackend.maxFrame

    /// Bytes from the peer that are not yet the guest's, from `inputStart` on.
    private let input: UnsafeMutableRawBufferPointer
    private var inputStart = 0
    private var inputEnd = 0
    /// The guest has no buffer for the first frame.
    private(set) var isBlocked = false
    private let frame: UnsafeMutableRawBufferPointer
    /// Bytes that the peer did not take yet.
    private(set) var unsent: [UInt8] = []

    init() {
        input = .allocate(byteCount: FrameStream.maxReceived, alignment: 16)
        frame = .allocate(byteCount: 4 + NetBackend.maxFrame, alignment: 16)
    }

    deinit {
        input.deallocate()
        frame.deallocate()
    }

    var hasUnsent: Bool { !unsent.isEmpty }
    /// Bytes that have been read and are not the guest's yet.
    var received: [UInt8] { Array(input[inputStart..<inputEnd]) }

    func clear() {
        inputStart = 0
        inputEnd = 0
        isBlocked = false
        unsent = []
    }

    /// Goes on where another process was.
    func restore(received: [UInt8], unsent: [UInt8]) throws(VMMError) {
        guard received.count <= input.count else { throw VMMError("\(received.count) bytes have been received") }
        clear()
        received.withUnsafeBytes { input.copyMemory(from: $0) }
        inputEnd = received.count
        self.unsent = unsent
    }

    // MARK: From the peer

    /// Reads what has come and hands on every whole frame.
    func read(_ fd: Int32, _ deliver: (UnsafeRawBufferPointer) -> Bool) -> End? {
        if inputStart > 0 {
            // Room for one more whole frame behind what is left.
            let rest = UnsafeRawBufferPointer(rebasing: input[inputStart..<inputEnd])
            input.copyMemory(from: rest)
            inputEnd -= inputStart
            inputStart = 0
        }
        let room = UnsafeMutableRawBufferPointer(rebasing: input[inputEnd...])
        let count = retryingInterrupts { Glibc.read(fd, room.baseAddress, room.count) }
        if count < 0 { return isTransientFailure() ? nil : End(reason: VMMError.system("read failed").message) }
        guard count > 0 else { return End(reason: "the peer closed the connection") }
        inputEnd += count
        return deliverAll(deliver)
    }

    /// The guest has room again.
    func deliverAgain(_ deliver: (UnsafeRawBufferPointer) -> Bool) -> End? {
        isBlocked = false
        return deliverAll(deliver)
    }

    /// Gives the guest every whole frame, until it has no room.
    private func deliverAll(_ deliver: (UnsafeRawBufferPointer) -> Bool) -> End? {
        while inputEnd - inputStart >= 4 {
            var length = 0
            for index in 0..<4 { length = length << 8 | Int(input[inputStart + index]) }
            guard length <= NetBackend.maxFrame else {
                return End(reason: "the peer sent a frame of \(length) bytes (at most \(NetBackend.maxFrame))")
            }
            guard inputEnd - inputStart - 4 >= length else { return nil }
            let start = inputStart + 4
            if length > 0, !deliver(UnsafeRawBufferPointer(rebasing: input[start..<start + length])) {
                isBlocked = true
                return nil
            }
            inputStart = start + length
        }
        return nil
    }

    // MARK: To the peer

    /// Sends one frame, or what the peer takes of it now; drops it when too
    /// much waits already.
    func send(_ parts: UnsafeBufferPointer<UnsafeRawBufferPointer>, to fd: Int32) -> End? {
        guard let end = NetBackend.gather(parts, into: frame, at: 4) else { return nil }
        let length = end - 4
        for index in 0..<4 { frame[index] = UInt8(truncatingIfNeeded: length >> (24 - 8 * index)) }
        let whole = UnsafeRawBufferPointer(rebasing: frame[..<end])
        guard unsent.isEmpty else {
            if unsent.count + whole.count <= FrameStream.maxBacklog { unsent += whole }
            return nil
        }
        return write(whole, to: fd) { unsent += whole[$0...] }
    }

    /// Sends what waits.
    func flush(_ fd: Int32) -> End? {
        let waiting = unsent
        return waiting.withUnsafeBytes { bytes in write(bytes, to: fd) { unsent = Array(bytes[$0...]) } }
    }

    /// - Parameter rest: is told from where on the peer did not take it.
    private func write(_ bytes: UnsafeRawBufferPointer, to fd: Int32, rest: (Int) -> Void) -> End? {
        guard !bytes.isEmpty else { return nil }
        let count = retryingInterrupts { Glibc.send(fd, bytes.baseAddress, bytes.count, Int32(MSG_NOSIGNAL)) }
        guard count >= 0 || isTransientFailure() else { return End(reason: VMMError.system("write failed").message) }
        rest(max(0, count))
        return nil
    }
}
