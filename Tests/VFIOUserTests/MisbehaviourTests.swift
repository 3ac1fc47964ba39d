import Foundation
import TestSupport
import Testing

/// Servers that say what cannot be.
@Suite(
    "vfio-user servers that misbehave", .enabled(if: GuestBuilder.isAvailable, "needs the toolchain's clang and lld"))
struct VFIOUserMisbehaviourTests {
    struct Start: CustomTestStringConvertible, Sendable {
        let options: [String]
        let error: String
        var testDescription: String { options.joined(separator: " ") }
    }

    /// Answers to any message of the start: 1 version, 2 dma_map, 4 device
    /// info, 5 region info, 9 region read.
    private static let answers: [(bad: String, error: String)] = [
        ("silent", "was not answered or completed within 300 ms"),
        ("close", "it has closed the connection"),
        ("error", "Operation not permitted"),
        ("odd-error", "Input/output error"),
        ("id", "number"),
        ("command", "was answered as message"),
        ("type", "is neither command nor reply"),
        ("huge", "impossible size"),
        ("tiny", "impossible size"),
        ("half", "was not answered or completed within 300 ms"),
        ("many-fds", "too many file descriptors"),
    ]

    /// To just one.
    private static let others: [(bad: String, error: String)] = [
        ("short=1", "was answered with 3 bytes"),
        ("short=4", "was answered with 3 bytes"),
        ("short=9", "was answered with 3 bytes"),
        ("long=2", "was answered with 4096 bytes"),
        ("long=5", "was answered with 4096 bytes"),
        ("long=9", "was answered with 4096 bytes"),
        ("fds=2", "was answered with 3 file descriptors"),
        ("fds=9", "was answered with 3 file descriptors"),
        ("twice=4", "was answered as message 4"),
    ]

    private static let capabilities: [(text: String, error: String)] = [
        ("{", "its capabilities are no JSON"),
        ("[]", "its capabilities are no JSON object"),
        (#"{"capabilities":3}"#, "'capabilities' is no JSON object"),
        (#"{"capabilities":{"max_msg_fds":0}}"#, "'max_msg_fds' is not a number from 1 on"),
        (#"{"capabilities":{"max_msg_fds":"8"}}"#, "'max_msg_fds'"),
        (#"{"capabilities":{"max_data_xfer_size":1}}"#, "'max_data_xfer_size'"),
        (#"{"capabilities":{"twin_socket":{"supported":true,"fd_index":3}}}"#, "twin socket is descriptor 3 of 0"),
        (#"{"capabilities":{"twin_socket":{"supported":true,"fd_index":-1}}}"#, "'fd_index'"),
    ]

    private static let regions: [(what: String, error: String)] = [
        ("version", "its version is 9.0, ours 0.1"),
        ("unended", "do not end in a NUL"),
        ("no-pci", "this isn't a PCI device"),
        ("few", "unexpected number of io regions 3"),
        ("config", "the configuration space has 64 bytes"),
        ("size", "is not in the device's file"),
        ("offset", "is not in the device's file"),
        ("index", "failed to get region 2 info"),
    ]

    static let starts: [Start] = {
        var all: [Start] = []
        for message in [1, 2, 4, 5, 9] {
            for answer in answers {
                all.append(Start(options: ["--bad", "\(answer.bad)=\(message)"], error: answer.error))
            }
        }
        all += others.map { Start(options: ["--bad", $0.bad], error: $0.error) }
        all += capabilities.map { Start(options: ["--caps", $0.text], error: $0.error) }
        all += regions.map { Start(options: ["--region", $0.what], error: $0.error) }
        return all
    }()

    @Test("end the start with an error", arguments: starts)
    func start(_ start: Start) throws {
        let directory = try TemporaryDirectory()
        let server = try VFIOUserGuest.serve(start.options, in: directory)
        defer { withExtendedLifetime(server) {} }
        // A short one only where it is to pass: any other answer may take its time on a busy machine.
        let limit = start.error.contains("within 300 ms") ? 300 : 60_000
        let socket = VFIOUserGuest.socket(directory)
        let device = "vfio-user-pci,socket.type=unix,socket.path=\(socket),x-msg-timeout=\(limit)"
        let process = try ChildProcess(try VFIOUserGuest.arguments(.msix, in: directory, device: device))
        #expect(try process.waitForExit() == .status(1))
        #expect(process.errors.contains("vfio vfio-user:\(VFIOUserGuest.socket(directory)): "), "\(process.errors)")
        #expect(process.errors.contains(start.error), "\(process.errors)")
    }

    @Test(
        "regions that cannot be mapped are reached by message",
        arguments: ["areas", "outside", "loop", "short", "pipe"])
    func unmappable(_ what: String) throws {
        let guest = try VFIOUserGuest(options: ["--region", what])
        // A file that is too short ends the server's own accesses.
        guard what != "short" else {
            try eventually("the VMM says so") { guest.process.errors.contains("region 2 cannot be mapped") }
            try guest.qmp.execute("quit")
            return
        }
        try guest.waitForProgress()
        #expect(guest.process.errors.contains("cannot be mapped") == (what == "pipe"))
        try guest.end()
    }

    @Test(
        "questions that make no sense are refused, and the device goes on",
        arguments: [
            ("outside", 14), ("over-the-end", 14), ("wrapping", 14), ("huge", 22), ("nothing", 22),
            ("write-outside", 14),
            ("write-less", 22), ("write-more", 22), ("half", 22), ("unknown", 22),
        ])
    func question(_ what: String, _ code: Int) throws {
        for twin in [[], ["--twin"]] {
            let guest = try VFIOUserGuest(options: ["--request", what] + twin)
            try guest.waitForProgress()
            #expect(guest.log("asked") == ["asked \(what): \(code)"])
            try guest.update()
            try guest.waitForProgress()
            try guest.end()
        }
    }

    @Test(
        "what ends the connection leaves the VM running",
        arguments: [
            ("fds", "came with 1 file descriptors"), ("reply", "that nobody waits for"),
            ("end", "it has closed the connection"),
            ("stall", "was not answered or completed within"),
        ])
    func ends(_ what: String, _ text: String) throws {
        let guest = try VFIOUserGuest(options: ["--request", what])
        try eventually("the VMM gives the server up: \(guest.process.errors)") {
            guest.process.errors.contains("the server is gone: ") && guest.process.errors.contains(text)
        }
        #expect("\(try guest.qmp.execute("query-status"))".contains("running"))
        // The guest sees what a device shows that is not there any more.
        let answer = try guest.qmp.execute("human-monitor-command", ["command-line": "xp /1wx 0x40000000"])
        #expect("\(answer)".contains("0xffffffff") || "\(answer)".contains("Cannot access memory"), "\(answer)")
        try guest.qmp.execute("system_reset")
        #expect("\(try guest.qmp.execute("query-status"))".contains("running"))
        try guest.end()
    }

    @Test("a file that the server shortens does not end the VMM")
    func shrinks() throws {
        let guest = try VFIOUserGuest(options: ["--request", "shrink"])
        try eventually("the server has done it") { guest.log.contains("shrunk") }
        // The guest starts again and tries the memory that is gone.
        try guest.qmp.execute("system_reset")
        try eventually("the guest finds all ones or its own: \(guest.serial)") {
            guest.serial.contains("vfio: ") || guest.serial.contains("FAIL")
        }
        #expect("\(try guest.qmp.execute("query-status"))".contains("running"))
        try guest.end()
    }
}
