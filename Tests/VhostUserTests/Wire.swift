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
    static func send(_ socket: Int32, _ bytes: Data, fds: [Int32] = []) {
        _ = DescriptorPassing.send(bytes, passing: fds, over: socket)
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
            guard let part = DescriptorPassing.receive(upTo: count - result.count, from: socket) else { return nil }
            result += part.bytes
            fds += part.fds
        }
        return result
    }
}
