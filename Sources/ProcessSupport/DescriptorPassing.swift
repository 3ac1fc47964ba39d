import Foundation

/// Descriptors over unix sockets (SCM_RIGHTS, unix(7)).
public enum DescriptorPassing {
    /// struct cmsghdr: the length with itself, the level and the type.
    private static let headerSize = 16
    /// SCM_CREDENTIALS, which Glibc has for _GNU_SOURCE only: PID, user and group.
    private static let credentials: Int32 = 2

    /// Sends bytes with descriptors, which stay the caller's.
    /// - Returns: how many bytes went, or -1 with errno, as sendmsg(2).
    public static func send(_ bytes: Data, passing fds: [Int32], over socket: Int32) -> Int {
        var bytes = [UInt8](bytes)
        var control = [UInt8](repeating: 0, count: headerSize + (fds.count * 4 + 7) / 8 * 8)
        control.withUnsafeMutableBytes { raw in
            raw.storeBytes(of: headerSize + fds.count * 4, as: Int.self)
            raw.storeBytes(of: SOL_SOCKET, toByteOffset: 8, as: Int32.self)
            raw.storeBytes(of: Int32(SCM_RIGHTS), toByteOffset: 12, as: Int32.self)
            for (index, fd) in fds.enumerated() {
                raw.storeBytes(of: fd, toByteOffset: headerSize + 4 * index, as: Int32.self)
            }
        }
        return withMessage(&bytes, &control) { message in
            if fds.isEmpty { message.msg_controllen = 0 }
            return sendmsg(socket, &message, Int32(MSG_NOSIGNAL))
        }
    }

    /// Receives bytes, blocking, and the descriptors that came with them,
    /// which are the caller's then.
    /// - Parameter count: at most so many.
    /// - Returns: nil at the end of the connection, and when it fails.
    public static func receive(upTo count: Int, from socket: Int32) -> (bytes: Data, fds: [Int32])? {
        receiveWithSender(upTo: count, from: socket).map { ($0.bytes, $0.fds) }
    }

    /// The same, and the PID of the process that has sent it, if the socket has SO_PASSCRED.
    public static func receiveWithSender(
        upTo count: Int, from socket: Int32
    ) -> (bytes: Data, fds: [Int32], sender: pid_t?)? {
        var bytes = [UInt8](repeating: 0, count: count)
        var control = [UInt8](repeating: 0, count: 256)
        var controlLength = 0
        let got = withMessage(&bytes, &control) { message in
            let got = recvmsg(socket, &message, 0)
            controlLength = Int(message.msg_controllen)
            return got
        }
        guard got > 0 else { return nil }
        var fds: [Int32] = []
        var sender: pid_t?
        var start = 0
        while start + headerSize <= controlLength {
            let (length, kind) = control.withUnsafeBytes {
                ($0.load(fromByteOffset: start, as: Int.self), $0.load(fromByteOffset: start + 12, as: Int32.self))
            }
            guard length >= headerSize else { break }
            let words = stride(from: start + headerSize, to: min(start + length, controlLength), by: 4).map { offset in
                control.withUnsafeBytes { $0.load(fromByteOffset: offset, as: Int32.self) }
            }
            if kind == Int32(SCM_RIGHTS) { fds += words } else if kind == credentials { sender = words.first }
            start += (length + 7) / 8 * 8
        }
        return (Data(bytes.prefix(got)), fds, sender)
    }

    /// Calls what takes a message of these bytes and this ancillary data.
    private static func withMessage(
        _ bytes: inout [UInt8], _ control: inout [UInt8], _ body: (inout msghdr) -> Int
    ) -> Int {
        bytes.withUnsafeMutableBytes { bytes in
            control.withUnsafeMutableBytes { control in
                var vector = iovec(iov_base: bytes.baseAddress, iov_len: bytes.count)
                return withUnsafeMutablePointer(to: &vector) { vector in
                    var message = msghdr()
                    message.msg_iov = vector
                    message.msg_iovlen = 1
                    message.msg_control = control.baseAddress
                    message.msg_controllen = control.count
                    return body(&message)
                }
            }
        }
    }
}
