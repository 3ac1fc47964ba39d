import Foundation
import TestSupport

/// A vhost-user message as it is on the wire.
struct WireMessage {
    var request: UInt32
    var flags: UInt32
    var payload: Data
    var fds: [Int32] = []

    var needsReply: Bool { flags & 8 != 0 }

    func number<T: FixedWidthInteger>(at offset: Int, as type: T.Type = T.self) -> T {
        var value: T = 0
        for index in (0..<MemoryLayout<T>.size).reversed() where offset + index < payload.count {
            value = value << 8 | T(truncatingIfNeeded: payload[payload.startIndex + offset + index])
        }
        return value
    }
}

extension Data {
    init<T: FixedWidthInteger>(number: T) { self = Swift.withUnsafeBytes(of: number.littleEndian) { Data($0) } }
}

/// Messages with descriptors over a socket, blocking.
enum Wire {
    /// Ancillary data of one SCM_RIGHTS: a 16-byte header, then the numbers.
    private static let headerSize = 16

    static func send(_ socket: Int32, _ bytes: Data, fds: [Int32] = []) {
        var data = [UInt8](bytes)
        var control = [UInt8](repeating: 0, count: headerSize + (fds.count * 4 + 7) / 8 * 8)
        control.withUnsafeMutableBytes { raw in
            raw.storeBytes(of: headerSize + fds.count * 4, as: Int.self)
            raw.storeBytes(of: SOL_SOCKET, toByteOffset: 8, as: Int32.self)
            raw.storeBytes(of: Int32(SCM_RIGHTS), toByteOffset: 12, as: Int32.self)
            for (index, fd) in fds.enumerated() {
                raw.storeBytes(of: fd, toByteOffset: headerSize + 4 * index, as: Int32.self)
            }
        }
        data.withUnsafeMutableBytes { body in
            control.withUnsafeMutableBytes { ancillary in
                var vector = iovec(iov_base: body.baseAddress, iov_len: body.count)
                withUnsafeMutablePointer(to: &vector) { pointer in
                    var header = msghdr()
                    header.msg_iov = pointer
                    header.msg_iovlen = 1
                    if !fds.isEmpty {
                        header.msg_control = ancillary.baseAddress
                        header.msg_controllen = ancillary.count
                    }
                    _ = sendmsg(socket, &header, Int32(MSG_NOSIGNAL))
                }
            }
        }
    }

    static func send(_ socket: Int32, _ message: WireMessage) {
        send(
            socket,
            Data(number: message.request) + Data(number: message.flags) + Data(number: UInt32(message.payload.count))
                + message.payload, fds: message.fds)
    }

    /// - Returns: nil at the end of the connection.
    static func receive(_ socket: Int32) -> WireMessage? {
        var fds: [Int32] = []
        guard let head = read(socket, 12, &fds) else { return nil }
        var message = WireMessage(request: 0, flags: 0, payload: head)
        let size: UInt32 = message.number(at: 8)
        message.request = message.number(at: 0)
        message.flags = message.number(at: 4)
        guard size <= 1 << 16, let payload = read(socket, Int(size), &fds) else { return nil }
        message.payload = payload
        message.fds = fds
        return message
    }

    private static func read(_ socket: Int32, _ count: Int, _ fds: inout [Int32]) -> Data? {
        var result = Data()
        while result.count < count {
            var body = [UInt8](repeating: 0, count: count - result.count)
            var control = [UInt8](repeating: 0, count: 256)
            var controlLength = 0
            let got = body.withUnsafeMutableBytes { body in
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
            result += body.prefix(got)
            if controlLength >= headerSize {
                let length = control.withUnsafeBytes { $0.load(as: Int.self) }
                for offset in stride(from: headerSize, to: min(length, controlLength), by: 4) {
                    fds.append(control.withUnsafeBytes { $0.load(fromByteOffset: offset, as: Int32.self) })
                }
            }
        }
        return result
    }
}
