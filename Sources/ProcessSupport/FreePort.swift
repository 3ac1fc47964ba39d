import Foundation

/// Ports of this machine that nobody uses.
public enum FreePort {
    /// UDP ports of 127.0.0.1 that are free now. Who binds one may still find it taken, by somebody who was faster.
    public static func udp(_ count: Int) throws -> [UInt16] {
        var fds: [Int32] = []
        defer { for fd in fds { close(fd) } }
        return try (0..<count).map { _ in
            let fd = try Loopback.socket(SOCK_DGRAM)
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
