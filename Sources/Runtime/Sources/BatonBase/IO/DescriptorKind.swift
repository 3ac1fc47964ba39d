import Glibc

/// What a descriptor is, to tell whether one that was handed over fits the
/// command line.
public enum DescriptorKind {
    /// Whether it is a stream socket that listens, or one that does not.
    public static func isSocket(_ fd: Int32, listening: Bool) -> Bool {
        guard option(fd, SO_TYPE) == Int32(SOCK_STREAM.rawValue), let listens = option(fd, SO_ACCEPTCONN) else {
            return false
        }
        return (listens != 0) == listening
    }

    public static func isDatagramSocket(_ fd: Int32) -> Bool { option(fd, SO_TYPE) == Int32(SOCK_DGRAM.rawValue) }

    /// Whether it is a connected socket of type SOCK_SEQPACKET.
    package static func isPacketConnection(_ fd: Int32) -> Bool {
        option(fd, SO_TYPE) == Int32(SOCK_SEQPACKET.rawValue) && option(fd, SO_ACCEPTCONN) == 0
    }

    /// Whether it is a socket of the UNIX domain.
    public static func isLocal(_ fd: Int32) -> Bool { option(fd, SO_DOMAIN) == AF_UNIX }

    /// Whether it is a socket that is connected.
    public static func hasPeer(_ fd: Int32) -> Bool { peerAddress(of: fd) != nil }

    /// Where the other end of a socket is bound, as the system has it; nil for what is not connected.
    package static func peerAddress(of fd: Int32) -> [UInt8]? { address { getpeername(fd, $0, &$1) } }

    private static func address(_ get: (UnsafeMutablePointer<sockaddr>, inout socklen_t) -> Int32) -> [UInt8]? {
        var address = sockaddr_storage()
        var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
        let code = withUnsafeMutablePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { get($0, &length) }
        }
        return code == 0 ? withUnsafeBytes(of: &address) { Array($0.prefix(Int(length))) } : nil
    }

    /// A socket's option of level SOL_SOCKET; nil for what is no socket.
    package static func option(_ fd: Int32, _ name: Int32) -> Int32? {
        var value: Int32 = -1
        var length = socklen_t(MemoryLayout<Int32>.size)
        return getsockopt(fd, SOL_SOCKET, name, &value, &length) == 0 ? value : nil
    }

    public static func isWritable(_ fd: Int32) -> Bool {
        let flags = fcntl(fd, F_GETFL)
        return flags >= 0 && flags & O_ACCMODE != O_RDONLY
    }

    /// In a trial: where the sockets are bound that its own stand in for.
    package nonisolated(unsafe) static var addressesOfStandIns: [Int32: [UInt8]] = [:]

    /// Where a socket is bound, or the one that it stands in for, as the system
    /// has it; nil for what is no socket.
    package static func boundAddress(of fd: Int32) -> [UInt8]? {
        if let address = addressesOfStandIns[fd] { return address }
        return address { getsockname(fd, $0, &$1) }
    }

    /// Whether a socket is bound to an address of the command line.
    public static func isBound(_ fd: Int32, to address: SocketAddress) -> Bool {
        switch address {
        case .unix(let path):
            // fd=N: nobody knows where it is bound.
            if path.isEmpty { return true }
            guard let bound = boundAddress(of: fd), bound.count > MemoryLayout<sa_family_t>.size,
                bound.prefix(MemoryLayout<sa_family_t>.size).elementsEqual(
                    withUnsafeBytes(of: sa_family_t(AF_UNIX)) { Array($0) })
            else { return false }
            return bound.dropFirst(MemoryLayout<sa_family_t>.size).prefix { $0 != 0 }.elementsEqual(path.utf8)
        case .tcp(_, let port):
            guard case .tcp(_, let bound)? = SocketAddress.tcp(ofSocket: fd, peer: false) else { return false }
            // Port 0 asked for any; a port by name is not looked up again.
            guard let number = UInt16(port), number != 0 else { return true }
            return bound == String(number)
        }
    }
}
