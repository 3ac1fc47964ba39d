import Foundation

/// Ports of this machine that nobody uses.
public enum FreePort {
    /// UDP ports of 127.0.0.1 that are free now. Who binds one may still find it taken, by somebody who was faster.
    public static func udp(_ count: Int) throws -> [UInt16] {
        var fds: [Int32] = []
        defer { for fd in fds { close(fd) } }
        return try (0..<count).map { _ in
            let fd = socket(AF_INET, Int32(SOCK_DGRAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
            guard fd >= 0 else { throw Failure.system("socket") }
            // Open to the end: two of them are different.
            fds.append(fd)
            var address = sockaddr_in()
            address.sin_family = sa_family_t(AF_INET)
            inet_pton(AF_INET, "127.0.0.1", &address.sin_addr)
            var size = socklen_t(MemoryLayout<sockaddr_in>.size)
            let result = withUnsafeMutablePointer(to: &address) {
                $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    bind(fd, $0, size) == 0 && getsockname(fd, $0, &size) == 0
                }
            }
            guard result else { throw Failure.system("bind to a free port") }
            return UInt16(bigEndian: address.sin_port)
        }
    }
}
