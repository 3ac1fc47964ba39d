import Foundation
import TestSupport
import Testing

/// Back ends are not trusted: whatever they send, the VMM says what was wrong
/// and goes on, or refuses to start.
@Suite(
    "vhost-user back ends that misbehave", .enabled(if: GuestBuilder.isAvailable, "needs the toolchain's clang and lld")
)
struct MisbehaviourTests {
    private typealias Request = FakeDisk.Request

    /// Starts a VMM on a back end that it must refuse.
    /// - Returns: what it said.
    private func refusal(
        extra: [String] = [], memory: String? = nil, _ intercept: @escaping (FakeBackEnd, WireMessage, Int32) -> Bool
    ) throws -> String {
        let directory = try TemporaryDirectory()
        let disk = try FakeDisk(directory, intercept: intercept)
        defer { disk.end() }
        var arguments = try VhostUserGuest.arguments("blk", socket: disk.path, in: directory, extra: extra)
        if let memory, let index = arguments.firstIndex(of: "-object") { arguments[index + 1] = memory }
        let process = try ChildProcess(arguments)
        #expect(try process.waitForExit() == .status(1))
        return process.errors
    }

    struct Case: CustomTestStringConvertible, Sendable {
        var testDescription: String
        /// The message that is answered wrongly, and the bytes and number of
        /// descriptors that are the answer.
        var request: UInt32
        var answer: @Sendable (WireMessage) -> (Data, fds: Int)
        var error: String
    }

    private static func raw(_ request: UInt32, _ flags: UInt32, _ size: UInt32, _ body: Data) -> Data {
        Data(number: request) + Data(number: flags) + Data(number: size) + body
    }

    static let cases: [Case] = [
        Case(
            testDescription: "a reply that is too short", request: 1,
            answer: { _ in (raw(1, 5, 4, Data(count: 4)), 0) }, error: "has a reply of 4 bytes, not 8"),
        Case(
            testDescription: "a reply without a payload", request: 1, answer: { _ in (raw(1, 5, 0, Data()), 0) },
            error: "has a reply of 0 bytes, not 8"),
        Case(
            testDescription: "a reply that is too long", request: 15,
            answer: { _ in (raw(15, 5, 12, Data(count: 12)), 0) }, error: "has a reply of 12 bytes, not 8"),
        Case(
            testDescription: "a size beyond all bounds", request: 1,
            answer: { _ in (raw(1, 5, UInt32.max, Data(count: 64)), 0) },
            error: "was answered with 4294967295 bytes"),
        Case(
            testDescription: "a reply to another message", request: 1,
            answer: { _ in (raw(15, 5, 8, Data(count: 8)), 0) }, error: "was answered as message 15"),
        Case(
            testDescription: "a reply that is no reply", request: 1, answer: { _ in (raw(1, 1, 8, Data(count: 8)), 0) },
            error: "was answered with the flags 0x1"),
        Case(
            testDescription: "another version", request: 1, answer: { _ in (raw(1, 6, 8, Data(count: 8)), 0) },
            error: "was answered with the flags 0x6"),
        Case(
            testDescription: "descriptors that nobody asked for", request: 1,
            answer: { _ in (raw(1, 5, 8, Data(count: 8)), 3) }, error: "was answered with 3 file descriptors"),
        Case(
            testDescription: "more descriptors than fit", request: 1,
            answer: { _ in (raw(1, 5, 8, Data(count: 8)), 20) }, error: "was answered with too many file descriptors"),
        Case(
            testDescription: "no VIRTIO_F_VERSION_1", request: 1, answer: { _ in (raw(1, 5, 8, Data(count: 8)), 0) },
            error: "does not have VIRTIO_F_VERSION_1"),
        Case(
            testDescription: "no queue", request: 17, answer: { _ in (raw(17, 5, 8, Data(count: 8)), 0) },
            error: "The maximum number of queues supported by the backend is 0"),
        Case(
            testDescription: "no configuration space", request: 15,
            answer: { _ in (raw(15, 5, 8, Data(count: 8)), 0) }, error: "does not have VHOST_USER_PROTOCOL_F_CONFIG"),
        Case(
            testDescription: "a short configuration space", request: 24,
            answer: { _ in (raw(24, 5, 20, Data(count: 20)), 0) }, error: "that is not the configuration asked for"),
        Case(
            testDescription: "the configuration space of elsewhere", request: 24,
            answer: { ($0.needsReply ? Data() : raw(24, 5, 72, Data(number: UInt32(8)) + Data(count: 68)), 0) },
            error: "that is not the configuration asked for"),
        Case(
            testDescription: "a refusal", request: 21, answer: { _ in (raw(21, 5, 8, Data(number: UInt64(1))), 0) },
            error: "was refused (1)"),
        Case(
            testDescription: "an acknowledgement of the wrong size", request: 21,
            answer: { _ in (raw(21, 5, 2, Data(count: 2)), 0) }, error: "has an acknowledgement of 2 bytes"),
    ]

    @Test("ends the start with an error", arguments: cases)
    func badAnswer(_ bad: Case) throws {
        let errors = try refusal { _, message, socket in
            guard message.request == bad.request else { return false }
            let (bytes, count) = bad.answer(message)
            Wire.send(socket, bytes, fds: [Int32](repeating: 0, count: count))
            return true
        }
        #expect(errors.contains(bad.error), "\(errors)")
    }

    @Test("a back end that closes the connection ends the start with an error")
    func closes() throws {
        let errors = try refusal { disk, _, _ in
            disk.drop()
            return true
        }
        #expect(errors.contains("the back end has closed the connection"), "\(errors)")
    }

    @Test("a back end that says nothing ends the start within its time")
    func silent() throws {
        let errors = try refusal { _, message, _ in message.request == Request.getFeatures }
        #expect(errors.contains("was not answered within 3000 ms"), "\(errors)")
    }

    @Test("guest memory that is not shared ends the start with QEMU's error")
    func privateMemory() throws {
        let errors = try refusal(memory: "memory-backend-ram,id=ram,size=16M") { _, _, _ in false }
        #expect(
            errors.contains(
                "Failed initializing vhost-user memory map, consider using -object memory-backend-file share=on"))
    }

    // MARK: While the guest runs

    /// The device is lost to the guest, and the VMM goes on.
    private func expectDeviceError(_ guest: VhostUserGuest, _ reason: String) throws {
        try eventually("the guest is told; it has said \(guest.serial.suffix(80)), the VMM \(guest.process.errors)") {
            guest.serial.contains("FAIL device needs reset")
        }
        try guest.process.waitForErrors(reason)
        #expect(try guest.qmp.status() == "running")
        try guest.end()
    }

    @Test("a message that nobody asked for is a device error")
    func unasked() throws {
        try withFakeDisk(
            waits: false,
            intercept: { disk, message, socket in
                guard message.request == Request.setVringKick else { return false }
                disk.handle(message, socket)
                Wire.send(socket, WireMessage(request: 1, flags: 5, payload: Data(count: 8)))
                return true
            }
        ) { _, guest in
            // It may come in place of the answer to the next message.
            try expectDeviceError(guest, "the back end is gone")
        }
    }

    /// It stands still when it is told to let go of its queues, is cut off, and goes on later.
    @Test("a back end that is late, and ends its requests after it has been cut off, has each of them done once")
    func late() throws {
        let directory = try TemporaryDirectory(), file = directory.file("checkpoint")
        let mayGoOn = directory.file("go")
        try withFakeDisk(
            chardev: ",reconnect-ms=20", extra: ["-cpr-enable", "restart,reboot"],
            intercept: { back, message, _ in
                guard message.request == Request.getVringBase, let disk = back as? FakeDisk, disk.holdsRequests else {
                    return false
                }
                while !FileManager.default.fileExists(atPath: mayGoOn) { usleep(1000) }
                disk.finishHeld()
                return true
            }
        ) { disk, guest in
            disk.holdsRequests = true
            try eventually("the disk has requests in hand") { disk.held > 0 }
            // It could still work on the memory that a checkpoint refers to: as it is served, and after it was cut off.
            for reason in ["the back end could not be stopped", "cut off with requests in hand"] {
                do {
                    try guest.qmp.execute("cpr-save", ["filename": file, "mode": "reboot"])
                    Issue.record("the save was not refused")
                } catch let refusal as QMPClient.Refusal {
                    #expect(refusal.text.contains(reason), "\(refusal.text)")
                }
                #expect(try guest.qmp.status() == "running")
            }
            try guest.update()
            FileManager.default.createFile(atPath: mayGoOn, contents: nil)
            try guest.waitForProgress()
            try guest.qmp.execute("cpr-save", ["filename": file, "mode": "reboot"])
            try guest.qmp.execute("cont")
            try guest.waitForProgress()
            try guest.end()
        }
    }

    @Test("a back end that is late as it is given its queues, and works on them after it has been cut off")
    func lateAtTheStart() throws {
        let directory = try TemporaryDirectory()
        let mayGoOn = directory.file("go")
        try withFakeDisk(
            chardev: ",reconnect-ms=20", waits: false,
            intercept: { back, message, _ in
                guard message.request == Request.setVringEnable, !FileManager.default.fileExists(atPath: mayGoOn) else {
                    return false
                }
                while !FileManager.default.fileExists(atPath: mayGoOn) { usleep(1000) }
                back.kicked(0)
                return true
            }
        ) { _, guest in
            try guest.process.waitForErrors("(setVringEnable) was not answered within 3000 ms")
            FileManager.default.createFile(atPath: mayGoOn, contents: nil)
            try guest.waitForProgress()
            try guest.end()
        }
    }

    @Test("a back end that goes is a device error")
    func goes() throws {
        try withFakeDisk { disk, guest in
            disk.drop()
            try expectDeviceError(guest, "it has closed the connection")
        }
    }

    @Test("a start that is refused or not answered is a device error", arguments: [Request.setMemTable, 10, 32])
    func refusesStart(_ request: UInt32) throws {
        try withFakeDisk(
            tracksRequests: true, waits: false,
            intercept: { disk, message, socket in
                guard message.request == request else { return false }
                disk.reply(socket, to: message, Data(number: UInt64(22)))
                return true
            }
        ) { _, guest in
            try expectDeviceError(guest, "was refused (22)")
        }
    }

    @Test(
        "a bad request on the back end's channel is a device error",
        arguments: [
            (Data(number: UInt32(2)) + Data(number: UInt32(1)) + Data(number: UInt32.max), "its request is too long"),
            (Data(number: UInt32(2)) + Data(number: UInt32(4)) + Data(number: UInt32(0)), "its request has the flags"),
        ])
    func badRequest(_ bytes: Data, _ error: String) throws {
        try withFakeDisk { disk, guest in
            Wire.send(disk.channel, bytes)
            try expectDeviceError(guest, error)
        }
    }

    @Test("calls without number, and half a request, change nothing")
    func noise() throws {
        try withFakeDisk { disk, guest in
            Wire.send(disk.channel, Data(number: UInt32(2)) + Data(count: 3))
            for _ in 0..<10_000 { disk.signal() }
            try guest.waitForProgress()
            try guest.update()
            try guest.waitForProgress()
            try guest.end()
        }
    }

    @Test("a queue that does not stop holds the end up for a limited time")
    func doesNotStop() throws {
        try withFakeDisk(intercept: { _, message, _ in message.request == Request.getVringBase }) { _, guest in
            try guest.qmp.execute("stop")
            try guest.process.waitForErrors("(getVringBase) was not answered within 3000 ms")
            try guest.end()
        }
    }
}
