import Foundation
import TestSupport
import Testing

/// `make soak`, for a short time, and what it does with a failure.
@Suite(.serialized, .enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"))
struct SoakTests {
    private let directory: TemporaryDirectory
    init() throws { directory = try TemporaryDirectory() }

    private func soak(_ options: [String]) throws -> ChildProcess {
        try ChildProcess([demo, "soak", "--keep", directory.file("kept"), "--timeout", "120"] + options)
    }

    /// Processes of machines of a soak, by the mark in their environment.
    /// - Returns: the directory of each one's machine.
    private func machines(of soak: ChildProcess) throws -> [String] {
        try FileManager.default.contentsOfDirectory(atPath: "/proc").compactMap { pid_t($0) }.compactMap { pid in
            guard pid != soak.pid, let environment = try? ProcFile.text("/proc/\(pid)/environ") else { return nil }
            let variables = environment.split(separator: "\0")
            guard variables.contains("BATON_SOAK_TEST=\(directory.path)") else { return nil }
            return variables.first { $0.hasPrefix("BATON_HARNESS_RUN=") }.map { String($0.dropFirst(18)) }
        }
    }

    @Test("Random steps lose nothing")
    func random() throws {
        let run = try soak(["--seed", "13", "--steps", "15"])
        #expect(try run.waitForExit(by: .seconds(900)) == .status(0), "\(run.output)\(run.report)")
        #expect(run.output.contains("\n15 steps in "), "\(run.output)")
        #expect(run.output.contains(" s, nothing lost\n"), "\(run.output)")
        #expect(!FileManager.default.fileExists(atPath: directory.file("kept")))
    }

    @Test("Each kind of step loses nothing")
    func everyKind() throws {
        let script = try directory.write(
            "script",
            """
            disk update
            disk plug what=disk
            disk plug what=chardev
            disk update preflight=off probe=load-kill
            disk transfer
            disk unplug what=disk
            disk full-disk update=yes
            harts slow-monitor commands=200
            harts update fault=refuses-its-options preflight=off
            disk kill after=4000
            disk steps then=kill
            disk reboot
            harts slow-serial updates=2
            harts reset
            harts clients count=3
            harts transfer fault=killed
            harts stop update=yes
            harts steps
            """)
        let run = try soak(["--script", script])
        #expect(try run.waitForExit(by: .seconds(900)) == .status(0), "\(run.output)\(run.report)")
        #expect(run.output.contains("\n18 steps in "), "\(run.output)")
    }

    /// A slot has power after a reset with a device in it, so that the guest has to let go of that.
    @Test("What is in a slot at a reset goes when the guest lets go of it, before an update or after it")
    func unplugAfterReset() throws {
        let script = try directory.write(
            "script",
            """
            harts plug what=rng
            harts reset
            harts unplug what=rng
            harts plug what=net
            harts update preflight=off
            harts unplug what=net update=yes
            disk plug what=disk
            disk reset
            disk reboot
            """)
        let run = try soak(["--script", script])
        #expect(try run.waitForExit(by: .seconds(900)) == .status(0), "\(run.output)\(run.report)")
        #expect(run.output.contains("\n9 steps in "), "\(run.output)")
    }

    @Test(
        "A storage process that stands still, or ends, holds up nothing but its disk",
        .enabled(if: Products.find("qemu-storage-daemon") != nil, "needs qemu-storage-daemon"))
    func slowStorage() throws {
        let deeds = [
            "update", "refusal", "transfer", "steps", "stop", "cont", "reboot", "kill", "kill-and-update",
        ]
        // Its VMM needs no engine for disks of its own when the plugged one has gone.
        let plugging = ["served plug what=disk", "served unplug what=disk", "served update", "served plug what=disk"]
        let steps = ["served slow-storage"] + plugging + deeds.map { "served slow-storage during=\($0)" }
        let script = try directory.write("script", steps.joined(separator: "\n"))
        let run = try soak(["--script", script])
        #expect(try run.waitForExit(by: .seconds(900)) == .status(0), "\(run.output)\(run.report)")
        #expect(run.output.contains("\n\(steps.count) steps in "), "\(run.output)")
    }

    /// A step that is there for this test kills the VMM: the guest is lost.
    @Test("A lost guest is found, and the list of steps is shortened to the one that lost it")
    func shortens() throws {
        let script = try directory.write(
            "script", "harts update\nharts stop\nharts clients count=2\nharts lose\nharts update\n")
        let run = try soak(["--script", script])
        #expect(try run.waitForExit(by: .seconds(900)) == .status(1), "\(run.output)\(run.report)")
        #expect(run.output.contains("step 3: ") && run.output.contains("step 4 failed: harts lose\n"), "\(run.output)")
        let shortest = directory.file("kept/shortest.soak")
        #expect(run.errors.contains("baton-demo soak --script \(shortest)"), "\(run.report)")
        #expect(run.errors.contains("1 of 4 steps:\nharts lose\n"), "\(run.report)")
        let lines = try String(contentsOfFile: shortest, encoding: .utf8).split(separator: "\n")
        #expect(lines.filter { !$0.hasPrefix("#") } == ["harts lose"])
        let all = try String(contentsOfFile: directory.file("kept/all.soak"), encoding: .utf8)
        #expect(all.hasSuffix("harts update\nharts stop\nharts clients count=2\nharts lose\n"), "\(all)")
        for name in ["failure.txt", "harts.txt", "harts-log"] {
            #expect(FileManager.default.fileExists(atPath: directory.file("kept/\(name)")), "no \(name)")
        }
        // And that script fails by itself.
        let again = try ChildProcess([
            demo, "soak", "--script", shortest, "--shrink-minutes", "0", "--keep", directory.file("again"),
        ])
        #expect(try again.waitForExit(by: .seconds(300)) == .status(1), "\(again.output)\(again.report)")
        #expect(again.errors.contains("step 1 failed: "), "\(again.report)")
    }

    @Test("A signal ends it, its machines and its directories", arguments: [SIGINT, SIGTERM])
    func interrupted(_ signal: Int32) throws {
        let temporary = directory.file("tmp")
        try FileManager.default.createDirectory(atPath: temporary, withIntermediateDirectories: false)
        let run = try ChildProcess(
            [demo, "soak", "--seed", "5", "--steps", "1000", "--machine", "harts", "--keep", directory.file("kept")],
            environment: ["BATON_SOAK_TEST": directory.path, "TMPDIR": temporary])
        try run.waitForOutput("step 2: ", by: .seconds(300))
        let machines = try machines(of: run)
        #expect(!machines.isEmpty)
        run.signal(signal)
        #expect(try run.waitForExit(by: .seconds(300)) == .status(1), "\(run.report)")
        #expect(run.errors.contains("interrupted by signal \(signal)"), "\(run.report)")
        #expect(try self.machines(of: run).isEmpty)
        for machine in machines { #expect(!FileManager.default.fileExists(atPath: machine)) }
        #expect(try FileManager.default.contentsOfDirectory(atPath: temporary).isEmpty)
        #expect(!FileManager.default.fileExists(atPath: directory.file("kept")))
    }
}
