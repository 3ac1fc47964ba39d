import Foundation
import TestSupport
import Testing

/// What a back end notices of an update: nothing.
@Suite("vhost-user over an update", .enabled(if: GuestBuilder.isAvailable, "needs the toolchain's clang and lld"))
struct VhostUserUpdateTests {
    @Test("the back end gets no message and no connection, and serves in the pause")
    func silence() throws {
        try withFakeDisk { disk, guest in
            let before = disk.messages
            for _ in 0..<5 {
                try guest.update()
                try guest.waitForProgress()
            }
            #expect(disk.messages == before)
            #expect(disk.connectionCount == 1)
            // At the end the queues are stopped in order.
            try guest.end()
            #expect(disk.messages.dropFirst(before.count).contains(FakeDisk.Request.getVringBase))
        }
    }

    @Test("an update that fails leaves the back end as it was", arguments: [["/bin/false"], ["/nonexistent"]])
    func failure(_ argv: [String]) throws {
        try withFakeDisk { disk, guest in
            let before = disk.messages
            #expect(throws: QMPClient.Refusal.self) { try guest.update(argv) }
            try guest.waitForProgress()
            // One that comes as far as to take the connection over, but not more.
            let wrong = guest.arguments + ["-device", "virtio-rng-device"]
            #expect(throws: QMPClient.Refusal.self) { try guest.update(wrong) }
            try guest.waitForProgress()
            #expect(disk.messages == before && disk.connectionCount == 1)
            try guest.update()
            try guest.waitForProgress()
            #expect(disk.messages == before && disk.connectionCount == 1)
        }
    }

    @Test("a save that is taken back after the queues were stopped has the back end serve them again")
    func saveTakenBack() throws {
        let modules = try TemporaryDirectory()
        let source = """
            #include <unistd.h>
            static int32_t save(struct baton_host *host) { (void)host; for (;;) pause(); }
            static int32_t load(struct baton_host *host) { (void)host; return 0; }
            static const struct baton_method methods[] = {
                BATON_METHOD("save", "i(h)", save), BATON_METHOD("load", "i(h)", load),
            };
            """
        let rogue = try CModule.build(kind: "preserver", name: "rogue", source, in: modules)
        let extra = [
            "-module", Products.module("preserver-vhost-user"), "-module", rogue, "-cpr-enable", "restart",
            "-cpr-enable", "reboot",
        ]
        try withFakeDisk(extra: extra) { disk, guest in
            let before = disk.messages.count
            #expect(throws: QMPClient.Refusal.self) {
                try guest.qmp.execute("cpr-save", ["filename": modules.file("state"), "mode": "reboot"])
            }
            try guest.waitForProgress()
            let after = disk.messages.dropFirst(before)
            #expect(after.contains(FakeDisk.Request.getVringBase) && after.last == FakeDisk.Request.setVringEnable)
            #expect(disk.connectionCount == 1)
            try guest.qmp.execute("quit")
        }
    }

    @Test("a stop and cont has the back end rest in between")
    func stopAndContinue() throws {
        try withFakeDisk { disk, guest in
            try guest.qmp.execute("stop")
            #expect(disk.messages.last == FakeDisk.Request.getVringBase)
            // Also over an update of a guest that is stopped.
            let before = disk.messages
            try guest.update()
            #expect(disk.messages == before)
            try guest.qmp.execute("cont")
            try guest.waitForProgress()
            #expect(disk.connectionCount == 1)
        }
    }

    @Test("a change of the configuration space is read at once")
    func configChange() throws {
        try withFakeDisk { disk, guest in
            try guest.update()
            let before = disk.messages.count
            disk.capacity = 16384
            Wire.send(disk.channel, WireMessage(request: 2, flags: 1, payload: Data()))
            try eventually("the configuration is read") {
                disk.messages.dropFirst(before).contains(FakeDisk.Request.getConfig)
            }
            try eventually("the driver is told") { guest.serial.contains("config: 16384\n") }
            try guest.waitForProgress()
        }
    }

    @Test("the guest goes on while a back end does not say what has changed")
    func slowConfigChanges() throws {
        let slowness = Slowness()
        try withFakeDisk(intercept: slowness.intercept) { disk, guest in
            slowness.holds = true
            let before = disk.messages.count
            func reads() -> Int { disk.messages.dropFirst(before).filter { $0 == FakeDisk.Request.getConfig }.count }
            func change(_ capacity: UInt64) {
                disk.capacity = capacity
                Wire.send(disk.channel, WireMessage(request: 2, flags: 1, payload: Data()))
            }
            for capacity in UInt64(1)...50 { change(capacity) }
            try eventually("the configuration is asked for") { reads() == 1 }
            // The answer does not come, but everybody else has their turns.
            try guest.waitForProgress()
            func isRunning() throws -> Bool {
                (try guest.qmp.execute("query-status") as? [String: Any])?["running"] as? Bool == true
            }
            #expect(try isRunning())
            #expect(reads() == 1)
            // It comes, and the 49 other changes are one reading.
            change(16384)
            slowness.answer(disk)
            try eventually("the driver is told") { guest.serial.contains("config: 16384\n") }
            try guest.waitForProgress()
            #expect(reads() <= 3)
            // A stop, an update and a reset in the midst of it: the answer is waited for.
            let actions: [() throws -> Void] = [
                { try guest.qmp.execute("stop") }, { try guest.update() }, { try guest.reset() },
            ]
            for action in actions {
                slowness.holds = true
                let reads = slowness.held
                change(16384 + UInt64(reads))
                try eventually("the configuration is asked for") { slowness.held > reads }
                slowness.answer(disk, after: 0.1)
                try action()
                if try !isRunning() { try guest.qmp.execute("cont") }
                try guest.waitForProgress()
            }
            #expect(disk.connectionCount == 1)
            try guest.end()
        }
    }

    @Test("requests in hand go to the next back end", arguments: [true, false])
    func inHand(_ tracksRequests: Bool) throws {
        try withFakeDisk(tracksRequests: tracksRequests, chardev: ",reconnect-ms=20") { disk, guest in
            for round in 1...3 {
                disk.holdsRequests = true
                try eventually("requests are in hand") { disk.held >= 16 * round }
                try guest.update()
                disk.holdsRequests = false
                disk.drop()
                try guest.waitForProgress()
                #expect(disk.connectionCount == 1 + round)
            }
            try guest.end()
        }
    }

    @Test("a back end that connects by itself is kept, and may come again", arguments: [true, false])
    func connects(_ tracksRequests: Bool) throws {
        try withFakeDisk(tracksRequests: tracksRequests, connects: true) { disk, guest in
            for round in 1...3 {
                let before = disk.messages
                try guest.update()
                try guest.waitForProgress()
                #expect(disk.messages == before && disk.connectionCount == round)
                disk.drop()
                try guest.waitForProgress()
            }
            #expect(disk.connectionCount == 4)
            try guest.end()
        }
    }
}

/// Has a back end keep its answers to GET_CONFIG for itself.
private final class Slowness: @unchecked Sendable {
    private let lock = NSLock()
    private var isHolding = false
    private var waiting: (message: WireMessage, socket: Int32)?
    private var count = 0

    var holds: Bool {
        get { lock.withLock { isHolding } }
        set { lock.withLock { isHolding = newValue } }
    }
    /// Questions that were not answered at once.
    var held: Int { lock.withLock { count } }

    func intercept(_ backEnd: FakeBackEnd, _ message: WireMessage, _ socket: Int32) -> Bool {
        lock.withLock {
            guard isHolding, message.request == FakeDisk.Request.getConfig else { return false }
            waiting = (message, socket)
            count += 1
            return true
        }
    }

    /// Answers, and holds no further answers.
    func answer(_ backEnd: FakeBackEnd, after seconds: Double = 0) {
        DispatchQueue.global().asyncAfter(deadline: .now() + seconds) { [self] in
            lock.withLock {
                isHolding = false
                if let (message, socket) = waiting {
                    backEnd.reply(
                        socket, to: message,
                        message.payload.prefix(12) + backEnd.config
                            + Data(count: max(0, message.payload.count - 12 - backEnd.config.count)))
                }
                waiting = nil
            }
        }
    }
}
