import Foundation

/// Sockets of 127.0.0.1, for programs that talk to a VMM by the network.
public enum Loopback {
    /// Calls `body` with the address of a port, and the address' size.
    public static func withAddress<T>(
        _ port: UInt16, _ body: (UnsafeMutablePointer<sockaddr>, socklen_t) throws -> T
    ) rethrows -> T {
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_port = port.bigEndian
        inet_pton(AF_INET, "127.0.0.1", &address.sin_addr)
        return try withUnsafeMutablePointer(to: &address) {
            try $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                try body($0, socklen_t(MemoryLayout<sockaddr_in>.size))
            }
        }
    }

    /// A socket, which the caller closes.
    public static func socket(_ type: __socket_type) throws -> Int32 {
        let fd = Foundation.socket(AF_INET, Int32(type.rawValue | SOCK_CLOEXEC.rawValue), 0)
        guard fd >= 0 else { throw Failure.system("socket") }
        return fd
    }

    /// A socket that is connected to a port; the caller closes it.
    public static func connect(_ type: __socket_type, to port: UInt16) throws -> Int32 {
        let fd = try socket(type)
        guard withAddress(port, { Foundation.connect(fd, $0, $1) }) == 0 else {
            let failure = Failure.system("connect to port \(port)")
            close(fd)
            throw failure
        }
        return fd
    }
}
