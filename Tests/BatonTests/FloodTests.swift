import Foundation
import TestSupport
import Testing

/// A guest that asks its disk for gigabytes at once: monitors, signals, updates and the guest itself have their turns
/// before that is done.
@Suite(
    "A guest that floods its disk", .enabled(if: GuestBuilder.isAvailable, "needs the toolchain's clang and lld"))
struct FloodTests {
    private static let chains = 64

    private let directory: TemporaryDirectory
    private let process: ChildProcess
    private let qmp: QMPClient
    private let arguments: [String]

    init() throws {
        directory = try TemporaryDirectory()
        // All holes, so that the disk is as fast as any.
        let disk = try directory.writeSparse("disk", size: 2000 << 20)
        arguments = [
            Products.baton, "-machine", "virt,memory-backend=ram", "-m", "16M",
            "-object", "memory-backend-memfd,id=ram,size=16M,share=on",
            "-bios", "none", "-kernel", try GuestBuilder.flat("flood/flood.c"),
            // By threads, whose system calls show what is carried out.
            "-drive", "if=none,id=d,file=\(disk),format=raw,aio=threads", "-device", "virtio-blk-device,drive=d",
            "-nodefaults", "-nographic", "-serial", "file:\(directory.file("serial"))",
            "-qmp", "unix:\(directory.file("qmp")),server=on,wait=off",
            // A tracer cannot be executed in one.
            "-sandbox", "off",
            "-cpr-enable", "restart",
        ]
        process = try ChildProcess(arguments)
        qmp = try QMPClient(path: directory.file("qmp"), of: process)
    }

    private var serial: String { (try? String(contentsOfFile: directory.file("serial"), encoding: .utf8)) ?? "" }

    /// How many requests the guest has had answers to.
    private func count() throws -> Int {
        let text = serial
        guard !text.contains("FAIL") else { throw TestError("the guest says \(text)") }
        return text.split(separator: "\n").last.flatMap { Int($0.dropFirst("flood: ".count)) } ?? 0
    }

    private func isRunning() throws -> Bool {
        (try qmp.execute("query-status") as? [String: Any])?["running"] as? Bool == true
    }

    @Test("everybody has turns, and an update comes in between")
    func turns() throws {
        defer { process.signal(SIGKILL) }
        try eventually("the guest has a turn; \(process.report)") { serial.contains("flood: asked\n") }
        for _ in 0..<50 { #expect(try isRunning()) }
        try qmp.execute("stop")
        #expect(try !isRunning())
        try qmp.execute("cont")
        try eventually("a request is done") { try count() > 0 }
        try qmp.execute("cpr-update", ["argv": arguments])
        let before = try count()
        try eventually("the requests go on after the update; \(process.report)") { try count() > before }
        #expect(try isRunning())
        #expect(try count() < Self.chains, "all was done before anybody else had a turn")
        process.signal(SIGTERM)
        #expect(try process.waitForExit() == .status(0))
        #expect(try count() < Self.chains)
    }

    @Test(
        "Requests go on when the guest is the new VMM's for good, and not before",
        .enabled(if: SystemCallTrace.isAvailable, "needs strace, and the right to trace processes"))
    func owner() throws {
        defer { process.signal(SIGKILL) }
        try eventually("a request is done; \(process.report)") { try count() > 0 }
        let trace = directory.file("trace")
        // With -D the tracer is no parent, and the new VMM has the PID.
        let tracer = ["strace", "-D", "-f", "-q", "-y", "-o", trace, "-e", "trace=write,preadv"]
        try qmp.execute(
            "cpr-update",
            ["argv": tracer + arguments, "preflight": false, "timeout-ms": 60_000, "downtime-ms": 60_000])
        var calls: [Substring] = []
        try eventually("a request has gone on") {
            calls = try String(contentsOfFile: trace, encoding: .utf8).split(separator: "\n")
            return calls.contains { $0.contains("preadv(") && $0.contains("/disk>") }
        }
        // The last of the stages that a new VMM reports: a byte behind the eight of the channel's secret.
        let report = try #require(calls.firstIndex { $0.contains("write(") && $0.contains("C\", 9)") })
        let request = try #require(calls.firstIndex { $0.contains("preadv(") && $0.contains("/disk>") })
        #expect(report < request)
    }
}
