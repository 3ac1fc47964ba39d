import Foundation
import TestSupport
import Testing

/// A real `baton` with one vhost-user device and the bare-metal guest for it.
final class VhostUserGuest {
    let directory: TemporaryDirectory
    let process: ChildProcess
    let qmp: QMPClient
    let arguments: [String]
    private let word: String

    static func image(_ name: String, queues: Int = 1) throws -> String {
        try GuestBuilder.flat("vhost/\(name).c", flags: ["-DQUEUES=\(queues)"])
    }

    static func arguments(
        _ name: String, socket: String, in directory: TemporaryDirectory, queues: Int = 1, chardev: String = "",
        memory: String = "memory-backend-memfd", extra: [String]
    ) throws -> [String] {
        let device =
            switch name {
            case "net":
                [
                    "-netdev", "vhost-user,id=n,chardev=c,queues=\(queues)",
                    "-device", "virtio-net-device,netdev=n,mq=\(queues > 1 ? "on" : "off")",
                ]
            case "vsock": ["-device", "vhost-user-vsock-device,chardev=c"]
            case "fs": ["-device", "vhost-user-fs-device,chardev=c,tag=share"]
            default: ["-device", "vhost-user-\(name)-device,chardev=c,num-queues=\(queues)"]
            }
        return try arguments(name, in: directory, queues: queues, memory: memory)
            + ["-chardev", "socket,id=c,path=\(socket)\(chardev)"] + device + extra
    }

    /// Those of a VMM that has no device for the guest yet.
    static func arguments(
        _ name: String, in directory: TemporaryDirectory, queues: Int = 1, memory: String = "memory-backend-memfd"
    ) throws -> [String] {
        [
            Products.baton, "-machine", "virt,memory-backend=ram", "-m", "16M",
            "-object", "\(memory),id=ram,size=16M,share=on", "-bios", "none", "-kernel",
            try image(name, queues: queues), "-nodefaults", "-nographic", "-d", "guest_errors",
            "-serial", "file:\(directory.file("serial"))",
            "-qmp", "unix:\(directory.file("qmp")),server=on,wait=off", "-sandbox",
            "paths=\(TemporaryDirectory.parent)",
        ]
    }

    /// - Parameters:
    ///   - name: `blk`, `fs`, `net` or `vsock`.
    ///   - queues: of a disk; of a network card, pairs.
    convenience init(
        _ name: String, socket: String, in directory: TemporaryDirectory, queues: Int = 1, chardev: String = "",
        memory: String = "memory-backend-memfd", extra: [String] = ["-cpr-enable", "restart"]
    ) throws {
        try self.init(
            name, in: directory,
            arguments: try Self.arguments(
                name, socket: socket, in: directory, queues: queues, chardev: chardev, memory: memory, extra: extra))
    }

    /// - Parameters:
    ///   - arguments: of the VMM, with its name.
    ///   - prefix: a command that executes the VMM.
    init(
        _ name: String, in directory: TemporaryDirectory, arguments: [String], prefix: [String] = [],
        environment: [String: String] = [:]
    ) throws {
        self.directory = directory
        word = "\(name): "
        self.arguments = arguments
        process = try ChildProcess(prefix + arguments, environment: environment)
        qmp = try QMPClient(path: directory.file("qmp"), of: process)
    }

    deinit { qmp.endVMM(startedAs: process) }

    /// What the guest has printed.
    var serial: String { (try? String(contentsOfFile: directory.file("serial"), encoding: .utf8)) ?? "" }

    /// Resets the guest, and waits until it is at work again. The number of queues must divide 256.
    func reset() throws {
        let starts = serial.components(separatedBy: "\n\(word)512\n").count
        try qmp.execute("system_reset")
        try eventually("the guest's requests go on after its reset; it said \(serial.suffix(200)); \(process.report)") {
            _ = try count()
            return serial.components(separatedBy: "\n\(word)512\n").count > starts
        }
    }

    /// How many requests the guest says it has done.
    func count() throws -> Int {
        let text = serial
        guard !text.contains("FAIL") else {
            throw TestError("the guest says \(text.suffix(200)), the VMM: \(process.errors)")
        }
        let complete = text.split(separator: "\n", omittingEmptySubsequences: false).dropLast()
        return complete.last { $0.hasPrefix(word) }.flatMap { Int($0.dropFirst(word.count)) } ?? 0
    }

    /// Waits until the guest has done at least 512 more requests.
    func waitForProgress() throws {
        let before = try count()
        try eventually("the guest's requests go on past \(before); it said \(serial.suffix(200)); \(process.report)") {
            try count() >= before + 512
        }
    }

    func update(_ argv: [String]? = nil) throws {
        try qmp.execute("cpr-update", ["argv": argv ?? arguments])
    }

    func end() throws {
        try qmp.execute("quit")
        #expect(try process.waitForExit() == .status(0))
    }
}
