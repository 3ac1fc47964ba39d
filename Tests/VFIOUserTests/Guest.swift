import Foundation
import TestSupport
import Testing

/// A real `baton` with the device of a vfio-user server and the bare-metal
/// guest for it.
final class VFIOUserGuest: CountingDeviceGuest {
    typealias Interrupts = CountingDevice.Interrupts

    let directory: TemporaryDirectory
    let server: ChildProcess
    let process: ChildProcess
    let qmp: QMPClient
    let arguments: [String]
    let deviceCount = 1
    var deviceErrors: String { server.errors }

    static func socket(_ directory: TemporaryDirectory) -> String { directory.file("device") }

    /// - Parameter device: the options of the device instead of the usual ones.
    static func arguments(
        _ interrupts: Interrupts, in directory: TemporaryDirectory, device: String? = nil, memory: String? = nil,
        kernel: String? = nil, extra: [String] = ["-cpr-enable", "restart"]
    ) throws -> [String] {
        let device =
            device ?? "{\"driver\":\"vfio-user-pci\",\"socket\":{\"path\":\"\(socket(directory))\",\"type\":\"unix\"}}"
        return [
            Products.baton, "-machine", "\(interrupts.machine),memory-backend=ram", "-m", "16M",
            "-object", memory ?? "memory-backend-memfd,id=ram,size=16M,share=on", "-bios", "none",
            "-kernel", try kernel ?? CountingDevice.image(interrupts), "-device", device,
            "-nodefaults", "-nographic", "-serial", "file:\(directory.file("serial"))",
            "-qmp", "unix:\(directory.file("qmp")),server=on,wait=off", "-sandbox",
            "paths=\(TemporaryDirectory.parent)",
        ] + extra
    }

    /// The tests' own server.
    static func serve(_ options: [String], in directory: TemporaryDirectory) throws -> ChildProcess {
        try serve(["\(Products.directory)/vfio-user-server", "--log", directory.file("log")] + options, at: directory)
    }

    /// Starts any server; the socket is its last argument.
    static func serve(_ command: [String], at directory: TemporaryDirectory) throws -> ChildProcess {
        let server = try ChildProcess(command + [socket(directory)])
        try eventually("the server listens; \(server.report)") {
            guard server.isRunning else { throw TestError("the server has ended: \(server.report)") }
            // A connection would be the server's one and only.
            return try ListeningSocket.exists(at: socket(directory))
        }
        return server
    }

    /// A connection to the server.
    static func connect(_ directory: TemporaryDirectory) throws -> Int32 {
        let fd = Foundation.socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        try #require(QMPClient.withAddress(socket(directory)) { Foundation.connect(fd, $0, $1) } == 0)
        return fd
    }

    /// - Parameters:
    ///   - server: the command of a server; by default the tests' own with these options.
    ///   - device: the device's option, where descriptor 7 is a connection to the server.
    ///   - kernel: another guest than that of the counting device.
    init(
        _ interrupts: Interrupts = .msix, options: [String] = [], server command: [String]? = nil,
        device: String? = nil, memory: String? = nil, kernel: String? = nil,
        extra: [String] = ["-cpr-enable", "restart"]
    ) throws {
        directory = try TemporaryDirectory()
        server =
            try command.map { [directory] in try Self.serve($0, at: directory) }
            ?? Self.serve(options, in: directory)
        arguments = try Self.arguments(
            interrupts, in: directory, device: device, memory: memory, kernel: kernel, extra: extra)
        let connection = device == nil ? nil : try Self.connect(directory)
        defer { if let connection { close(connection) } }
        process = try ChildProcess(arguments, descriptors: connection.map { [7: $0] } ?? [:])
        qmp = try QMPClient(path: directory.file("qmp"), of: process)
    }

    /// What the server has noted.
    func log(_ prefix: String) -> [String] { log.filter { $0.hasPrefix(prefix) } }
}
