import BatonRuntime
import Glibc

/// `udp`: each write is a datagram to one peer, and what that sends is input.
final class UDPChardev: KeptStreamChardev {
    private let remote: SocketAddress
    private let local: SocketAddress?
    /// Of a datagram, what the front end had no room for.
    private var rest: ArraySlice<UInt8> = []
    private static let longest = 1 << 16

    /// - Parameter local: where to send from; nil for wherever the system says.
    init(id: String, remote: SocketAddress, local: SocketAddress?, loop: EventLoop, held: Bool) {
        (self.remote, self.local) = (remote, local)
        super.init(
            id: id, backend: "udp", place: remote.name + (local.map { "@\($0.name)" } ?? ""), loop: loop, held: held)
    }

    func open() throws(VMMError) {
        let fd = try remote.connectDatagrams(from: local).release()
        try connect(input: fd, output: fd)
    }

    override func receive(_ fd: Int32, into buffer: UnsafeMutableRawBufferPointer) -> Int {
        if rest.isEmpty {
            var bytes = [UInt8](repeating: 0, count: UDPChardev.longest)
            let count = recv(fd, &bytes, bytes.count, Int32(MSG_DONTWAIT))
            // Nobody was there for an earlier datagram; and an empty one says nothing.
            guard count > 0 else {
                if count == 0 || errno == ECONNREFUSED { errno = EAGAIN }
                return -1
            }
            rest = bytes[..<count]
        }
        let count = min(rest.count, buffer.count)
        buffer.copyBytes(from: rest.prefix(count))
        rest = rest.dropFirst(count)
        return count
    }

    override func acceptInput() {
        super.acceptInput()
        guard !rest.isEmpty else { return }
        loop.later { [weak self] in self?.deliverRest() }
    }

    private func deliverRest() {
        guard !isHeld, let frontend else { return }
        let count = min(rest.count, frontend.chardevCanReceive())
        guard count > 0 else { return }
        let part = Array(rest.prefix(count))
        rest = rest.dropFirst(count)
        part.withUnsafeBytes { frontend.chardevReceive($0) }
    }

    /// A datagram for somebody who is not there is lost.
    override func transmit(_ fd: Int32, _ bytes: UnsafeRawBufferPointer) -> Int {
        let count = send(fd, bytes.baseAddress, min(bytes.count, UDPChardev.longest / 2), Int32(MSG_NOSIGNAL))
        return count < 0 && !isTransientFailure() && errno != EINTR ? bytes.count : count
    }
}
