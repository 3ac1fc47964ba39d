import Glibc

/// Where datagrams are sent to.
public struct DatagramPeer {
    private var raw: SocketAddress.Raw

    /// - Throws: when the address' name cannot be resolved.
    public init(_ address: SocketAddress) throws(VMMError) {
        guard let first = try address.resolve(passive: false).first else {
            throw VMMError("address resolution failed for \(address.name)")
        }
        raw = first
    }

    /// Sends one datagram, without waiting.
    /// - Returns: as `sendto(2)`.
    public mutating func send(_ bytes: UnsafeRawBufferPointer, by fd: Int32) -> Int {
        let flags = Int32(MSG_NOSIGNAL) | Int32(MSG_DONTWAIT)
        return raw.withPointer { sendto(fd, bytes.baseAddress, bytes.count, flags, $0, $1) }
    }
}

extension SocketAddress {
    /// Makes a datagram socket that sends to this address, and receives from it only.
    /// - Parameter local: where it sends from; nil for wherever the system says.
    /// - Returns: a non-blocking socket.
    public func connectDatagrams(from local: SocketAddress?) throws(VMMError) -> OwnedFD {
        guard var raw = try resolve(passive: false).first else {
            throw VMMError("address resolution failed for \(name)")
        }
        let number: Int32
        if let local {
            number = try local.bindDatagram()
        } else {
            number = socket(raw.family, Int32(SOCK_DGRAM.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue), 0)
        }
        guard number >= 0 else { throw .system("can't create datagram socket") }
        let fd = OwnedFD(adopting: number)
        guard raw.withPointer({ connect(fd.raw, $0, $1) }) == 0 else { throw .system("can't send to '\(name)'") }
        return fd
    }

    /// Makes a datagram socket with this address; the file of one that nobody
    /// owns any more is replaced.
    /// - Returns: a non-blocking socket, owned by the caller.
    public func bindDatagram() throws(VMMError) -> Int32 {
        var failure = VMMError("can't bind '\(name)'")
        for var raw in try resolve(passive: true) {
            let kind = Int32(SOCK_DGRAM.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue)
            let number = socket(raw.family, kind, 0)
            guard number >= 0 else { throw .system("can't create datagram socket") }
            let fd = OwnedFD(adopting: number)
            guard removeStaleFile() else { throw .system("can't bind '\(name)'") }
            if raw.withPointer({ bind(fd.raw, $0, $1) }) == 0 { return fd.release() }
            failure = .system("can't bind '\(name)'")
        }
        throw failure
    }
}
