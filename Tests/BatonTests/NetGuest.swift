import Foundation
import TestSupport

/// A real `baton` with one network card and the guest that answers on it.
final class NetGuest {
    static let address = "10.77.0.2"
    static let mac: [UInt8] = [0x52, 0x54, 0, 0x12, 0x34, 0x56]

    let directory: TemporaryDirectory
    let process: ChildProcess
    let qmp: QMPClient
    let arguments: [String]
    /// Of this machine, that leads to the guest; 0 for none.
    var port: UInt16 = 0

    static func image() throws -> String { try GuestBuilder.flat("net/net.c") }

    /// - Parameters:
    ///   - netdev: the option's text, with the id `n`.
    ///   - card: properties of the card, each behind a comma.
    ///   - prefix: a command that executes the VMM.
    ///   - descriptors: open fds of this process, by their number in the VMM.
    init(
        netdev: String, card: String = "", in directory: TemporaryDirectory, prefix: [String] = [],
        extra: [String] = ["-cpr-enable", "restart"],
        descriptors: [Int32: Int32] = [:]
    ) throws {
        self.directory = directory
        arguments =
            [
                Products.baton, "-machine", "virt,memory-backend=ram", "-m", "16M",
                "-object", "memory-backend-memfd,id=ram,size=16M,share=on", "-bios", "none", "-kernel",
                try Self.image(),
                "-netdev", netdev, "-device", "virtio-net-device,netdev=n\(card)", "-nodefaults", "-nographic",
                "-serial", "file:\(directory.file("serial"))", "-qmp",
                "unix:\(directory.file("qmp")),server=on,wait=off", "-sandbox", "paths=\(directory.path)",
            ] + extra
        process = try ChildProcess(prefix + arguments, descriptors: descriptors)
        qmp = try QMPClient(path: directory.file("qmp"), of: process)
        try eventually("the guest is ready; \(serial)") { serial.contains("net: ready\n") }
    }

    /// Starts a VMM that waits for the state of a guest, whose own has ended.
    init(waiting arguments: [String], in directory: TemporaryDirectory) throws {
        self.directory = directory
        self.arguments = arguments
        process = try ChildProcess(arguments + ["-S"])
        qmp = try QMPClient(path: directory.file("qmp"), of: process)
    }

    deinit { qmp.endVMM(startedAs: process) }

    /// What the guest has printed.
    var serial: String { (try? String(contentsOfFile: directory.file("serial"), encoding: .utf8)) ?? "" }

    func update(_ argv: [String]? = nil, preflight: Bool = true) throws {
        try qmp.execute("cpr-update", ["argv": argv ?? arguments, "preflight": preflight])
    }
}

/// Ethernet frames with numbered ICMP echo requests to the guest.
enum EchoFrame {
    static let mac: [UInt8] = [2, 0, 0, 0, 0, 1]

    static func sum(_ bytes: some Sequence<UInt8>) -> UInt16 {
        var total: UInt32 = 0
        for (index, byte) in bytes.enumerated() { total += UInt32(byte) << (index & 1 == 0 ? 8 : 0) }
        while total > 0xffff { total = (total & 0xffff) + (total >> 16) }
        return ~UInt16(total)
    }

    static func bigEndian<T: FixedWidthInteger>(_ value: T) -> [UInt8] {
        withUnsafeBytes(of: value.bigEndian) { Array($0) }
    }

    /// An ICMP message that carries the number, with `padding` bytes behind it.
    static func message(_ number: UInt32, identifier: UInt16 = 0x77, padding: Int = 0) -> [UInt8] {
        var message: [UInt8] = [8, 0, 0, 0] + bigEndian(identifier) + bigEndian(UInt16(truncatingIfNeeded: number))
        message += bigEndian(number) + [UInt8](repeating: 0x5a, count: padding)
        message.replaceSubrange(2..<4, with: bigEndian(sum(message)))
        return message
    }

    static func request(_ number: UInt32, padding: Int = 40) -> [UInt8] {
        let message = message(number, padding: padding)
        var ip: [UInt8] = [0x45, 0] + bigEndian(UInt16(20 + message.count)) + [0, 0, 0, 0, 64, 1, 0, 0]
        ip += [10, 77, 0, 1, 10, 77, 0, 2]
        ip.replaceSubrange(10..<12, with: bigEndian(sum(ip)))
        return NetGuest.mac + mac + [8, 0] + ip + message
    }

    /// The number of an ICMP message that is an intact reply.
    static func number(ofReply message: some RandomAccessCollection<UInt8>) -> UInt32? {
        let bytes = Array(message)
        guard bytes.count >= 12, bytes[0] == 0, sum(bytes) == 0 else { return nil }
        return bytes[8..<12].reduce(0) { $0 << 8 | UInt32($1) }
    }

    /// The number of a frame that is an intact reply; nil for any other frame.
    static func number(ofFrame frame: [UInt8]) -> UInt32? {
        guard frame.count >= 34, Array(frame[..<6]) == mac, frame[12] == 8, frame[13] == 0, frame[23] == 1 else {
            return nil
        }
        return number(ofReply: frame[34...])
    }
}
