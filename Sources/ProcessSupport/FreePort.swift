import Foundation

/// Ports of this machine that nobody uses.
public enum FreePort {
    /// UDP ports of 127.0.0.1 that are free now. Who binds one may still find it taken, by somebody who was faster.
    public static func udp(_ count: Int) throws -> [UInt16] { try free(SOCK_DGRAM, count) }

    /// A TCP port of 127.0.0.1 that is free now, as with `udp`.
    public static func tcp() throws -> UInt16 { try free(SOCK_STREAM, 1)[0] }

    private static func free(_ type: __socket_type, _ count: Int) throws -> [UInt16] {
        var fds: [Int32] = []
        defer { for fd in fds { close(fd) } }
        return try (0..<count).map { _ in
            let fd = try Loopback.socket(type)
            // Open to the end: two of them are different.
            fds.append(fd)
            return try Loopback.withAddress(0) { address, size in
                var size = size
                guard bind(fd, address, size) == 0, getsockname(fd, address, &size) == 0 else {
                    throw Failure.system("bind to a free port")
                }
                return address.withMemoryRebound(to: sockaddr_in.self, capacity: 1) {
                    UInt16(bigEndian: $0.pointee.sin_port)
                }
            }
        }
    }
}
