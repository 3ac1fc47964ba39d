import Foundation
import TestSupport
import Testing

/// Over an update the kernel's device goes with its process: the guest is told once, and goes on with another.
@Suite(
    "vhost-vsock of the kernel over an update",
    .enabled(if: GuestBuilder.isAvailable, "needs the toolchain's clang and lld"))
struct KernelVsockUpdateTests {
    @Test("each update has the guest give its connections up, once, and new ones work")
    func updates() throws {
        try withKernelVsock { vsock in
            for number in 1...5 {
                try vsock.guest.update()
                try vsock.waitForProgress(resets: number)
            }
            // Nobody asks for the address as long as another has it, and no trial does.
            let expected = ["address"] + [[String]](repeating: ["closed", "address"], count: 5).joined()
            #expect(vsock.turns() == expected, "\(vsock.log)")
            vsock.expectCleanLog()
            try vsock.guest.end()
        }
    }

    @Test("a guest that stands still is told when it goes on")
    func stopped() throws {
        try withKernelVsock { vsock in
            try vsock.guest.qmp.execute("stop")
            try vsock.guest.update()
            #expect(vsock.resets == 0 && vsock.requests.last != "run 1")
            try vsock.guest.qmp.execute("cont")
            try vsock.waitForProgress(resets: 1)
            vsock.expectCleanLog()
            try vsock.guest.end()
        }
    }

    @Test("a preflight, and what it refuses, leave the connections alone")
    func preflight() throws {
        try withKernelVsock { vsock in
            try vsock.guest.qmp.execute("cpr-preflight", ["argv": vsock.guest.arguments])
            #expect(throws: QMPClient.Refusal.self) { try vsock.guest.update(["/bin/false"]) }
            #expect(throws: QMPClient.Refusal.self) {
                try vsock.guest.update(vsock.guest.arguments + ["-device", "virtio-rng-device"])
            }
            try vsock.guest.waitForProgress()
            #expect(vsock.turns() == ["address"] && vsock.resets == 0)
            #expect(vsock.requests.count { $0 == "own" } == 1)
            try vsock.guest.end()
        }
    }

    @Test("a new VMM that fails at its start leads back: the guest is told once, and goes on")
    func failedStart() throws {
        try withKernelVsock { vsock in
            for number in 1...3 {
                #expect(throws: QMPClient.Refusal.self) {
                    try vsock.guest.qmp.execute("cpr-update", ["argv": ["/bin/false"], "preflight": false])
                }
                try vsock.waitForProgress(resets: number)
            }
            try vsock.guest.update()
            try vsock.waitForProgress(resets: 4)
            vsock.expectCleanLog()
            try vsock.guest.qmp.execute("quit")
        }
    }

    @Test("an address that the new VMM cannot have fails the update, and the old one takes it back when it can")
    func addressInUse() throws {
        try withKernelVsock(["--refuse", "address=98:2"]) { vsock in
            #expect {
                try vsock.guest.update()
            } throws: {
                "\($0)".contains("vhost-vsock: unable to set guest cid: Address already in use")
            }
            try vsock.guest.process.waitForErrors("it is tried again")
            #expect(try vsock.guest.qmp.status() == "running")
            #expect(vsock.turns() == ["address", "closed"])
            vsock.guest.process.signal(SIGUSR2)
            try vsock.waitForProgress(resets: 1)
            try vsock.guest.update()
            try vsock.waitForProgress(resets: 2)
            vsock.expectCleanLog()
            try vsock.guest.end()
        }
    }

    @Test("a device that could not be opened again is not closed: the update is refused")
    func noRights() throws {
        // A sandbox's warden would try it, too.
        let extra = ["-cpr-enable", "restart", "-sandbox", "off"]
        try withKernelVsock(["--refuse", "open=13:2"], extra: extra) { vsock in
            #expect {
                try vsock.guest.update()
            } throws: {
                "\($0)".contains(
                    "an update closes /dev/vhost-vsock, which cannot be opened again: "
                        + "vhost-vsock: failed to open vhost device: Permission denied")
            }
            try vsock.guest.waitForProgress()
            #expect(vsock.turns() == ["address"] && vsock.resets == 0)
            vsock.guest.process.signal(SIGUSR2)
            try eventually("the simulator is lenient") { (try? vsock.guest.update()) != nil }
            try vsock.waitForProgress(resets: 1)
            try vsock.guest.end()
        }
    }

    @Test("in three steps the device is let go of by the save, and taken back by cont")
    func threeSteps() throws {
        let directory = try TemporaryDirectory()
        let state: [String: Any] = ["filename": directory.file("state"), "mode": "restart"]
        try withKernelVsock { vsock in
            let guest = vsock.guest
            try guest.qmp.execute("cpr-save", state)
            try eventually("the address is free: \(vsock.log)") { vsock.turns() == ["address", "closed"] }
            try guest.qmp.execute("cont")
            try vsock.waitForProgress(resets: 1)
            try guest.qmp.execute("cpr-save", state)
            try guest.qmp.execute("cpr-exec", ["argv": guest.arguments + ["-S"]])
            try eventually("the address is free: \(vsock.log)") { vsock.turns().last == "closed" }
            try guest.qmp.execute("cpr-load", state)
            try vsock.waitForProgress(resets: 2)
            vsock.expectCleanLog()
            try guest.end()
        }
    }

    @Test("a checkpoint that another process loads has the guest give its connections up")
    func checkpoint() throws {
        let directory = try TemporaryDirectory()
        let memory = "memory-backend-file,mem-path=\(directory.file("ram"))"
        let state: [String: Any] = ["filename": directory.file("state"), "mode": "reboot"]
        func start(_ more: [String]) throws -> KernelVsockGuest {
            try KernelVsockGuest(in: directory, extra: ["-cpr-enable", "reboot"] + more, memory: memory)
        }
        let vsock = try start([])
        try vsock.guest.waitForProgress()
        try vsock.guest.qmp.execute("cpr-save", state)
        try vsock.guest.end()
        let before = vsock.resets
        let next = try start(["-S"])
        try next.guest.qmp.execute("cpr-load", state)
        try next.guest.waitForProgress()
        // It is told before the save, or after the load.
        #expect(before + next.resets == 1)
        next.expectCleanLog()
        try next.guest.end()
    }
}
