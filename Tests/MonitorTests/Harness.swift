import BatonRuntime
import Chardev
import Foundation
import Monitor
import TestSupport

/// A VM in the test's own process, whose loop the test turns.
final class TestMachine {
    let vm: VirtualMachine
    let memory = GuestMemory()

    init() throws {
        ChildProcess.ignoreBrokenPipes()
        DescriptorLimit.raise()
        vm = try VirtualMachine()
        vm.architecture = "riscv64"
        try registerCoreCommands(vm: vm, memory: memory)
        try registerChardevCommands(vm: vm)
    }

    deinit { for chardev in vm.chardevs { chardev.shutDown() } }

    /// Turns the loop until `condition` holds.
    func turn(_ what: String, seconds: Double = 120, until condition: () throws -> Bool) throws {
        let deadline = Deadline.seconds(seconds)
        while try !condition() {
            guard !deadline.hasPassed else { throw TestError("gave up waiting for: \(what)") }
            vm.loop.poll(timeout: 2_000_000)
        }
    }

    /// A chardev on one end of a socket pair, and the other end.
    func makePair(_ id: String) throws -> (Chardev, Peer) {
        var ends: [Int32] = [-1, -1]
        guard socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0, &ends) == 0 else {
            throw TestError("socketpair")
        }
        // Less than what tests fill them with, whatever the machine has for all (wmem_default).
        var size: Int32 = 100_000
        for fd in ends { setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, socklen_t(MemoryLayout<Int32>.size)) }
        let chardev = try ChardevFactory.make("socket,id=\(id),fd=\(ends[0])", vm: vm)
        return (chardev, Peer(fd: ends[1], machine: self))
    }

    /// A negotiated QMP session.
    func makeSession(_ id: String = "qmp") throws -> Peer {
        let (chardev, peer) = try makePair(id)
        try QMPMonitor(vm: vm, chardev: chardev)
        _ = try peer.message()
        try peer.send(#"{"execute": "qmp_capabilities"}"#)
        guard try peer.message()["return"] != nil else { throw TestError("negotiation failed") }
        return peer
    }
}

/// The far end of a chardev's connection.
final class Peer {
    let fd: Int32
    private let machine: TestMachine
    func machineLoop(_ timeout: Int64) { machine.vm.loop.poll(timeout: timeout) }
    private(set) var received: [UInt8] = []
    private(set) var isClosed = false

    init(fd: Int32, machine: TestMachine) {
        self.fd = fd
        self.machine = machine
        _ = fcntl(fd, F_SETFL, O_NONBLOCK)
    }
    deinit { close(fd) }

    func send(_ text: String) throws { try send(Array(text.utf8)) }

    /// Sends everything, while the loop turns.
    func send(_ bytes: [UInt8]) throws {
        var sent = 0
        try machine.turn("room to send") {
            sent += trySend(bytes[sent...])
            return sent == bytes.count
        }
    }

    /// - Returns: how many bytes went out without waiting.
    func trySend(_ bytes: ArraySlice<UInt8>) -> Int {
        max(0, bytes.withUnsafeBytes { Foundation.write(fd, $0.baseAddress, $0.count) })
    }

    func pull() {
        var buffer = [UInt8](repeating: 0, count: 1 << 16)
        while true {
            let count = read(fd, &buffer, buffer.count)
            if count == 0 || (count < 0 && errno != EAGAIN) { isClosed = true }
            guard count > 0 else { return }
            received += buffer[..<count]
        }
    }

    /// Waits until `text` has come, and takes everything up to its end.
    @discardableResult
    func expect(_ text: String) throws -> String {
        var end: Int?
        let wanted = Array(text.utf8)
        try machine.turn("'\(text)'; so far '\(String(decoding: received, as: UTF8.self))'") {
            pull()
            end = received.firstRange(of: wanted)?.upperBound
            return end != nil
        }
        defer { received.removeFirst(end ?? 0) }
        return String(decoding: received[..<(end ?? 0)], as: UTF8.self)
    }

    /// The next line as a JSON object.
    func message() throws -> JSONObject {
        let line = try expect("\r\n")
        guard let object = try JSON(parsing: line).objectValue else { throw TestError("not an object: \(line)") }
        return object
    }

    /// Sends a request and gives its answer.
    func ask(_ request: String) throws -> JSONObject {
        try send(request + "\n")
        return try message()
    }

    /// The `desc` of the error that a request causes.
    func refusal(_ request: String) throws -> String {
        let answer = try ask(request)
        guard let text = answer["error"]?.objectValue?["desc"]?.stringValue else {
            throw TestError("no error: \(JSON.object(answer).text())")
        }
        return text
    }
}

/// A front end that keeps what it gets.
final class Recorder: ChardevFrontend {
    var received: [UInt8] = []
    var events: [ChardevEvent] = []
    var room = Int.max
    var writable = 0
    func chardevCanReceive() -> Int { max(0, room - received.count) }
    func chardevReceive(_ bytes: UnsafeRawBufferPointer) { received += bytes }
    func chardevEvent(_ event: ChardevEvent) { events.append(event) }
    func chardevWritable() { writable += 1 }
    var text: String { String(decoding: received, as: UTF8.self) }
}

extension Chardev {
    @discardableResult
    func write(_ text: String) -> Int { Array(text.utf8).withUnsafeBytes { write($0) } }
}

/// A generator with a fixed seed: a failure can be repeated.
struct SeededGenerator: RandomNumberGenerator {
    var state: UInt64
    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ z >> 30) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ z >> 27) &* 0x94D0_49BB_1331_11EB
        return z ^ z >> 31
    }
}

/// The message of the error that `body` throws.
func errorText(_ body: () throws -> Void) -> String {
    do {
        try body()
        return "no error"
    } catch let error as VMMError {
        return error.message
    } catch {
        return "\(error)"
    }
}
