import Foundation
import TestSupport
import Testing

/// The directory of the other build's executables and modules.
private let otherBuild = ProcessInfo.processInfo.environment["BATON_OTHER_BUILD"]

/// A guest goes to and fro between this build and that of another revision, by each mode (`make test-skew REV=`).
@Suite(
    "Another revision's build",
    .enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"),
    .enabled(if: otherBuild != nil, "needs BATON_OTHER_BUILD, another revision's build: make test-skew"))
struct SkewTests {
    enum Build: String, CaseIterable {
        case this, other

        var vmm: String { self == .this ? Products.baton : (otherBuild ?? "") + "/baton" }
        var next: Build { self == .this ? .other : .this }
    }

    /// A guest with a device of each kind that needs nobody else.
    private struct VM {
        let directory = try! TemporaryDirectory()
        let guest: CountingGuest

        /// A VMM of before the sandbox has no such option, and is none that could run in one.
        private static let otherHasSandbox =
            (try? ChildProcess.run([Build.other.vmm, "-help"]))?.contains("-sandbox") == true

        init(_ build: Build) throws {
            guest = try CountingGuest(
                extra: (!Self.otherHasSandbox && build == .this ? ["-sandbox", "off"] : [])
                    + ["restart", "transfer", "reboot"].flatMap { ["-cpr-enable", $0] }
                    + EveryDevice.options(in: directory), vmm: [build.vmm],
                paths: Self.otherHasSandbox ? [Products.directory, otherBuild ?? "/"] : nil)
        }

        func command(_ build: Build, _ more: [String] = []) -> [String] {
            var words = Array(guest.arguments.dropFirst())
            if !Self.otherHasSandbox {
                if let place = words.firstIndex(of: "-sandbox") { words.removeSubrange(place...place + 1) }
                if build == .this { words += ["-sandbox", "off"] }
            }
            return [build.vmm] + words + more
        }

        /// The guest goes on, in order, in the VMM of a build.
        func expectGuest(in build: Build, past count: UInt64) throws {
            #expect(try guest.qmp.status() == "running")
            try guest.waitForProgress(past: max(count, guest.count))
            try guest.expectRightSum()
            let query = try #require(try guest.qmp.execute("query-cpr") as? [String: Any])
            let pid = try #require(query["pid"] as? Int)
            let program = try FileManager.default.destinationOfSymbolicLink(atPath: "/proc/\(pid)/exe")
            #expect(program == URL(fileURLWithPath: build.vmm).resolvingSymlinksInPath().path)
        }
    }

    @Test("cpr-update, with its preflight, there and back", arguments: Build.allCases)
    func update(from first: Build) throws {
        let vm = try VM(first)
        for build in [first.next, first, first.next] {
            let before = vm.guest.count
            try vm.guest.qmp.execute("cpr-update", ["argv": vm.command(build)])
            try vm.expectGuest(in: build, past: before)
        }
        let history = try #require(try vm.guest.qmp.execute("query-cpr") as? [String: Any])
        #expect(history["generation"] as? Int == 3)
    }

    @Test("The three steps of a restart, there and back", arguments: Build.allCases)
    func steps(from first: Build) throws {
        let vm = try VM(first)
        for build in [first.next, first] {
            let before = vm.guest.count
            try vm.guest.save()
            try vm.guest.exec(vm.command(build, ["-S"]))
            try vm.guest.load()
            try vm.expectGuest(in: build, past: before)
        }
    }

    @Test("A checkpoint of the mode reboot, there and back", arguments: Build.allCases)
    func reboot(from first: Build) throws {
        let vm = try VM(first)
        for build in [first.next, first] {
            let before = vm.guest.count
            try vm.guest.save(mode: "reboot")
            try vm.guest.qmp.execute("quit")
            #expect(try vm.guest.startAgain(vm.command(build, ["-S"])), "\(vm.guest.process.report)")
            try vm.guest.load(mode: "reboot")
            try vm.expectGuest(in: build, past: before)
        }
    }

    @Test("The mode transfer, there and back", arguments: Build.allCases)
    func transfer(from first: Build) throws {
        let vm = try VM(first)
        let channel = vm.directory.file("cpr")
        var old = vm.guest.process
        for build in [first.next, first] {
            let new = try CountingGuest.startWaiting(vm.command(build), at: channel)
            let before = vm.guest.count
            try vm.guest.qmp.execute("cpr-update", ["mode": "transfer", "channel": channel])
            #expect(try old.waitForExit() == .status(0))
            try vm.guest.reconnect()
            try vm.expectGuest(in: build, past: before)
            old = new
        }
        try vm.guest.qmp.execute("quit")
        #expect(try old.waitForExit() == .status(0))
    }
}
