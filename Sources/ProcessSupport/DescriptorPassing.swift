import Foundation

/// Descriptors over unix sockets (SCM_RIGHTS, unix(7)).
public enum DescriptorPassing {
    /// struct cmsghdr: the length with itself, the level and the type.
    private static let headerSize = 16

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
        return bytes.withUnsafeMutableBytes { body in
            control.withUnsafeMutableBytes { ancillary in
                var vector = iovec(iov_base: body.baseAddress, iov_len: body.count)
                return withUnsafeMutablePointer(to: &vector) { pointer in
                    var header = msghdr()
                    header.msg_iov = pointer
                    header.msg_iovlen = 1
                    if !fds.isEmpty {
                        header.msg_control = ancillary.baseAddress
                        header.msg_controllen = ancillary.count
                    }
                    return sendmsg(socket, &header, Int32(MSG_NOSIGNAL))
                }
            }
        }
    }

    /// Receives bytes, blocking, and the descriptors that came with them,
    /// which are the caller's then.
    /// - Parameter count: at most so many.
    /// - Returns: nil at the end of the connection, and when it fails.
    public static func receive(upTo count: Int, from socket: Int32) -> (bytes: Data, fds: [Int32])? {
        var bytes = [UInt8](repeating: 0, count: count)
        var control = [UInt8](repeating: 0, count: 256)
        var controlLength = 0
        let got = bytes.withUnsafeMutableBytes { body in
            control.withUnsafeMutableBytes { ancillary in
                var vector = iovec(iov_base: body.baseAddress, iov_len: body.count)
                return withUnsafeMutablePointer(to: &vector) { pointer in
                    var header = msghdr()
                    header.msg_iov = pointer
                    header.msg_iovlen = 1
                    header.msg_control = ancillary.baseAddress
                    header.msg_controllen = ancillary.count
                    let got = recvmsg(socket, &header, 0)
                    controlLength = Int(header.msg_controllen)
                    return got
                }
            }
        }
        guard got > 0 else { return nil }
        guard controlLength >= headerSize else { return (Data(bytes.prefix(got)), []) }
        let length = control.withUnsafeBytes { $0.load(as: Int.self) }
        let fds = stride(from: headerSize, to: min(length, controlLength), by: 4).map { offset in
            control.withUnsafeBytes { $0.load(fromByteOffset: offset, as: Int32.self) }
        }
        return (Data(bytes.prefix(got)), fds)
    }
}
