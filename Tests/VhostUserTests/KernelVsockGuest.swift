import Foundation
import TestSupport
import Testing

/// A real `baton` with a `vhost-vsock-device`, which `vhost-simulator` serves in the kernel's place, and the bare-metal
/// guest for it.
struct KernelVsockGuest {
    static let address = 42

    let guest: VhostUserGuest

    /// - Parameters:
    ///   - options: of the simulator.
    ///   - device: more options of the device.
    init(
        in directory: TemporaryDirectory, options: [String] = [], device: String = "",
        extra: [String] = ["-cpr-enable", "restart"], memory: String = "memory-backend-memfd"
    ) throws {
        let arguments = try Self.arguments(in: directory, device: device, extra: extra, memory: memory)
        guest = try VhostUserGuest(
            "vsock", in: directory, arguments: arguments, prefix: Self.simulator(directory, options))
    }

    static func arguments(
        in directory: TemporaryDirectory, device: String = "", extra: [String] = [],
        memory: String = "memory-backend-memfd"
    ) throws -> [String] {
        try VhostUserGuest.arguments("vsock", in: directory, memory: memory)
            + ["-device", "vhost-vsock-device,guest-cid=\(address)\(device)"] + extra
    }

    static func simulator(_ directory: TemporaryDirectory, _ options: [String] = []) -> [String] {
        ["\(Products.directory)/vhost-simulator", "--log", directory.file("log")] + options + ["--"]
    }

    /// Starts a VMM that is to be refused.
    /// - Parameter options: of the device; nil: no simulator, with the usual ones.
    /// - Returns: what it said.
    static func errors(_ options: String, simulator: [String]? = []) throws -> String {
        let directory = try TemporaryDirectory()
        let arguments =
            try VhostUserGuest.arguments("vsock", in: directory) + ["-device", "vhost-vsock-device\(options)"]
        let process = try ChildProcess((simulator.map { Self.simulator(directory, $0) } ?? []) + arguments)
        #expect(try process.waitForExit() == .status(1))
        return process.errors
    }

    /// How often the guest was told that its connections are no more.
    var resets: Int { guest.serial.components(separatedBy: "vsock reset\n").count - 1 }

    /// What the simulator saw: a line a request that changes something.
    var log: [String] {
        ((try? String(contentsOfFile: guest.directory.file("log"), encoding: .utf8)) ?? "")
            .split(separator: "\n").map(String.init)
    }

    /// The log without the processes.
    var requests: [String] { log.map { String($0.drop { $0 != " " }.dropFirst()) } }

    /// What became of the guest's address: `address` and `closed`, in turn if all is well.
    func turns(_ address: Int = KernelVsockGuest.address) -> [String] {
        requests.filter { ["address \(address)", "closed \(address)"].contains($0) }.map {
            String($0.prefix { $0 != " " })
        }
    }

    /// Waits until the guest works, and has been told so often that its connections are no more.
    func waitForProgress(resets wanted: Int) throws {
        func state() -> String { "it said \(guest.serial.suffix(200)); \(log.suffix(12)); \(guest.process.report)" }
        try eventually("the guest is told \(wanted) times; \(state())") { resets >= wanted }
        try guest.waitForProgress()
        #expect(resets == wanted)
    }

    /// Waits until a guest whose device fails knows, has the simulator refuse nothing more, and resets the machine: the
    /// guest works again.
    func resetFailed() throws {
        var failures = 0
        try eventually("the guest works again; it said \(guest.serial.suffix(200)); \(log)") {
            let parts = guest.serial.components(separatedBy: "FAIL device needs reset")
            if parts.count - 1 > failures {
                failures = parts.count - 1
                guest.process.signal(SIGUSR2)
                try guest.qmp.execute("system_reset")
            }
            return failures > 0 && parts.last?.contains("\nvsock: 512\n") == true
        }
    }

    /// Nothing has gone wrong in the kernel: no thread was ended by an exec, no memory was missing, and nobody asked for
    /// what is another's.
    func expectCleanLog() {
        let wrong = requests.filter { $0.hasPrefix("refused") || $0.hasPrefix("an exec") || $0.hasPrefix("broken") }
        #expect(wrong.isEmpty, "\(log)")
    }
}

/// Has `body` test a guest at work.
func withKernelVsock(
    _ options: [String] = [], extra: [String] = ["-cpr-enable", "restart"], _ body: (KernelVsockGuest) throws -> Void
) throws {
    let vsock = try KernelVsockGuest(in: try TemporaryDirectory(), options: options, extra: extra)
    try vsock.guest.waitForProgress()
    try body(vsock)
}
