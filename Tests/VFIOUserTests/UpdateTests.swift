import Foundation
import TestSupport
import Testing

/// What the server sees of an update: nothing.
@Suite("vfio-user-pci over an update", .enabled(if: GuestBuilder.isAvailable, "needs the toolchain's clang and lld"))
struct VFIOUserUpdateTests {
    struct Way: CustomTestStringConvertible, Sendable {
        let interrupts: VFIOUserGuest.Interrupts
        let options: [String]
        var testDescription: String { "\(interrupts) \(options.joined(separator: " "))" }
    }

    static let ways = [
        Way(interrupts: .msix, options: []), Way(interrupts: .msi, options: []), Way(interrupts: .intx, options: []),
        Way(interrupts: .msix, options: ["--ask", "--twin"]), Way(interrupts: .msix, options: ["--ask"]),
    ]

    @Test("DMA and interrupts go on over ten updates, with no message to the server", arguments: ways)
    func goesOn(_ way: Way) throws {
        let guest = try VFIOUserGuest(way.interrupts, options: way.options)
        try guest.waitForProgress()
        let before = guest.log
        for _ in 1...10 {
            try guest.update()
            try guest.waitForProgress()
        }
        #expect(guest.log == before, "no reset, no new connection, no mapping, no interrupt set up again")
        try guest.end()
        try eventually("the server sees the end") { guest.log.last?.hasPrefix("disconnect") == true }
    }

    @Test("the three steps do the same")
    func threeSteps() throws {
        let guest = try VFIOUserGuest(options: ["--ask", "--twin"])
        try guest.waitForProgress()
        let file = guest.directory.file("checkpoint")
        let before = guest.log
        try guest.qmp.execute("cpr-save", ["filename": file, "mode": "restart"])
        try guest.qmp.execute("cont")
        try guest.waitForProgress()
        try guest.qmp.execute("cpr-save", ["filename": file, "mode": "restart"])
        try guest.qmp.execute("cpr-exec", ["argv": guest.arguments + ["-S"]])
        try guest.qmp.execute("cpr-load", ["filename": file, "mode": "restart"])
        try guest.waitForProgress()
        #expect(guest.log == before)
        try guest.end()
    }

    @Test("an error of the device stops the guest, also one that comes between two VMMs", arguments: [true, false])
    func error(_ comesBetween: Bool) throws {
        let guest = try VFIOUserGuest()
        try guest.waitForProgress()
        let before = guest.log
        #expect(before.contains("set_irqs index=3 start=0 count=1"))
        try guest.update()
        let file = guest.directory.file("checkpoint")
        if comesBetween {
            try guest.qmp.execute("cpr-save", ["filename": file, "mode": "restart"])
            try guest.qmp.execute("cpr-exec", ["argv": guest.arguments + ["-S"]])
        }
        guest.server.signal(SIGUSR1)
        try eventually("the server tells") { guest.log == before + ["error told"] }
        if comesBetween {
            #expect(!guest.process.errors.contains("Unrecoverable"))
            try guest.qmp.execute("cpr-load", ["filename": file, "mode": "restart"])
        }
        try guest.process.waitForErrors("Unrecoverable error detected. Please collect any data possible and then kill")
        try eventually("the guest stops") { try guest.qmp.status() == "internal-error" }
        try guest.end()
    }

    @Test("a new VMM that fails leaves the device at work in the old one", arguments: BrokenSuccessor.allCases)
    func rollback(_ successor: BrokenSuccessor) throws {
        for options in [[], ["--ask", "--twin"]] {
            try rollback(options, milliseconds: successor.milliseconds) { successor.arguments($0) }
        }
    }

    @Test("a new VMM with another server leaves the device at work in the old one")
    func otherServer() throws {
        try rollback([]) { arguments in arguments.map { $0.replacingOccurrences(of: "/device\"", with: "/other\"") } }
    }

    private func rollback(
        _ options: [String], milliseconds: Int = 30_000, _ successor: ([String]) -> [String]
    ) throws {
        let guest = try VFIOUserGuest(options: options)
        try guest.waitForProgress()
        let before = guest.log
        let argv = successor(guest.arguments)
        for preflight in [false, true] {
            #expect(throws: QMPClient.Refusal.self) {
                try guest.update(argv, ["preflight": preflight, "timeout-ms": milliseconds])
            }
            try guest.waitForProgress()
        }
        // It can still be updated.
        try guest.update()
        try guest.waitForProgress()
        #expect(guest.log == before)
        // The first process is gone; the old VMM goes on in its child.
        try guest.qmp.execute("quit")
        try guest.process.waitForExit()
    }

    @Test("a device whose server is gone does not stand in the way of an update")
    func gone() throws {
        let guest = try VFIOUserGuest(options: ["--request", "end"])
        try eventually("the VMM sees the end") { guest.process.errors.contains("the server is gone") }
        try guest.update()
        try guest.update()
        #expect("\(try guest.qmp.execute("query-status"))".contains("running"))
        #expect(guest.log("connect").count == 1)
        try guest.end()
    }

    @Test("reboot mode would lose the device")
    func reboot() throws {
        let guest = try VFIOUserGuest(extra: ["-cpr-enable", "reboot"])
        try guest.waitForProgress()
        let error = #expect(throws: QMPClient.Refusal.self) {
            try guest.qmp.execute("cpr-save", ["filename": guest.directory.file("checkpoint"), "mode": "reboot"])
        }
        #expect(error?.text.contains("VFIO device only supports cpr-reboot for runstate suspended") == true)
        try guest.waitForProgress()
        try guest.end()
    }
}
