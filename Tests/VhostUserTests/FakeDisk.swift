import Foundation
import TestSupport

/// A vhost-user-blk back end of the tests' own: a disk in memory, which a test
/// can have misbehave at any message. One client at a time, on a thread.
///
/// With `tracksRequests` it notes what it has in hand in the in-flight memory,
/// by a format of its own: a byte a descriptor.
final class FakeDisk: @unchecked Sendable {
    enum Request {
        static let getFeatures: UInt32 = 1
        static let setFeatures: UInt32 = 2
        static let setMemTable: UInt32 = 5
        static let setVringNum: UInt32 = 8
        static let setVringAddr: UInt32 = 9
        static let setVringBase: UInt32 = 10
        static let getVringBase: UInt32 = 11
        static let setVringKick: UInt32 = 12
        static let setVringCall: UInt32 = 13
        static let getProtocolFeatures: UInt32 = 15
        static let getQueueNum: UInt32 = 17
        static let setBackendChannel: UInt32 = 21
        static let getConfig: UInt32 = 24
        static let getInflight: UInt32 = 31
        static let setInflight: UInt32 = 32
    }

    private struct Region {
        var start: UInt64
        var size: UInt64
        var host: UnsafeMutableRawPointer
    }

    let path: String
    /// Takes a message instead of the disk: returns true when it has.
    private let intercept: (FakeDisk, WireMessage, Int32) -> Bool
    private let tracksRequests: Bool
    /// -1 for a disk that connects.
    private let listener: Int32
    private let lock = NSLock()
    private var connection: Int32 = -1
    private var log: [UInt32] = []
    private var connections = 0
    private var isEnding = false
    /// Is held while guest RAM is worked on.
    private let work = NSLock()
    private var isDropped = false

    // Of the connection that is served.
    private var regions: [Region] = []
    private var size: UInt16 = 0
    private var base: UInt16 = 0
    private var rings: (descriptors: UInt64, used: UInt64, available: UInt64) = (0, 0, 0)
    private var kick: Int32 = -1
    private(set) var call: Int32 = -1
    private(set) var channel: Int32 = -1
    private var inflight: UnsafeMutablePointer<UInt8>?
    private var disk = [UInt8](repeating: 0, count: 4 << 20)
    /// Requests that are taken and never answered.
    var holdsRequests = false
    var capacity: UInt64 = 8192
    private(set) var held = 0

    /// - Parameter connects: to whoever listens, again and again, instead of listening itself.
    init(
        _ directory: TemporaryDirectory, tracksRequests: Bool = false, connects: Bool = false,
        intercept: @escaping (FakeDisk, WireMessage, Int32) -> Bool = { _, _, _ in false }
    ) throws {
        path = directory.file("disk.sock")
        self.tracksRequests = tracksRequests
        self.intercept = intercept
        listener = connects ? -1 : socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
        if !connects {
            guard QMPClient.withAddress(path, { bind(listener, $0, $1) }) == 0, listen(listener, 4) == 0 else {
                throw TestError("cannot listen on \(path)")
            }
        }
        Thread { [self] in run() }.start()
    }

    /// Ends the thread and every connection.
    func end() {
        lock.withLock { isEnding = true }
        if listener >= 0 { shutdown(listener, Int32(SHUT_RDWR)) }
        drop()
    }

    /// Closes the connection, as a back end that dies does: nothing of guest RAM is touched after that.
    func drop() {
        work.withLock { isDropped = true }
        lock.withLock { if connection >= 0 { shutdown(connection, Int32(SHUT_RDWR)) } }
    }

    /// The messages so far, by number.
    var messages: [UInt32] { lock.withLock { log } }
    var connectionCount: Int { lock.withLock { connections } }

    // MARK: The thread

    private func run() {
        while true {
            let fd = listener >= 0 ? accept(listener, nil, nil) : connectToListener()
            guard fd >= 0 else { break }
            lock.withLock {
                connection = fd
                connections += 1
            }
            work.withLock { isDropped = false }
            serve(fd)
            lock.withLock { connection = -1 }
            close(fd)
            forget()
            if lock.withLock({ isEnding }) { break }
        }
        if listener >= 0 { close(listener) }
    }

    /// - Returns: -1 when the disk is to end.
    private func connectToListener() -> Int32 {
        while !lock.withLock({ isEnding }) {
            let fd = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
            if QMPClient.withAddress(path, { connect(fd, $0, $1) }) == 0 { return fd }
            close(fd)
            usleep(10_000)
        }
        return -1
    }

    private func serve(_ socket: Int32) {
        while true {
            var polled = [
                pollfd(fd: socket, events: Int16(POLLIN), revents: 0), pollfd(fd: kick, events: Int16(POLLIN), revents: 0),
            ]
            guard poll(&polled, 2, -1) > 0 else { continue }
            if polled[1].revents & Int16(POLLIN) != 0 {
                var count: UInt64 = 0
                _ = read(kick, &count, 8)
                takeRequests()
            }
            if polled[0].revents != 0 {
                guard let message = Wire.receive(socket) else { return }
                lock.withLock { log.append(message.request) }
                if !intercept(self, message, socket) { handle(message, socket) }
            }
        }
    }

    func reply(_ socket: Int32, to message: WireMessage, _ payload: Data, fds: [Int32] = []) {
        Wire.send(socket, WireMessage(request: message.request, flags: 1 | 4, payload: payload, fds: fds))
    }

    func handle(_ message: WireMessage, _ socket: Int32) {
        switch message.request {
        case Request.getFeatures: return reply(socket, to: message, Data(number: UInt64(1 << 32 | 1 << 30 | 1 << 9)))
        case Request.getProtocolFeatures:
            let inflight: UInt64 = tracksRequests ? 1 << 12 : 0
            return reply(socket, to: message, Data(number: UInt64(1 << 0 | 1 << 3 | 1 << 5 | 1 << 9) | inflight))
        case Request.getQueueNum: return reply(socket, to: message, Data(number: UInt64(1)))
        case Request.getConfig:
            var config = Data(number: capacity)
            config += Data(count: max(0, message.payload.count - 12 - config.count))
            return reply(socket, to: message, message.payload.prefix(12) + config)
        case Request.getVringBase:
            if kick >= 0 { close(kick) }
            kick = -1
            return reply(socket, to: message, Data(number: UInt32(0)) + Data(number: UInt32(base)))
        case Request.getInflight:
            let memory = open("/tmp", O_RDWR | 0o20200000, 0o600)  // O_TMPFILE
            ftruncate(memory, 4096)
            reply(
                socket, to: message,
                Data(number: UInt64(4096)) + Data(number: UInt64(0)) + message.payload.dropFirst(16), fds: [memory])
            close(memory)
            return
        case Request.setInflight:
            let memory = mmap(nil, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, message.fds.first ?? -1, 0)
            inflight = memory.flatMap { $0 == MAP_FAILED ? nil : $0.assumingMemoryBound(to: UInt8.self) }
        case Request.setMemTable: map(message)
        case Request.setVringNum: size = message.number(at: 4)
        case Request.setVringBase: base = message.number(at: 4)
        case Request.setVringAddr: rings = (message.number(at: 8), message.number(at: 16), message.number(at: 24))
        case Request.setVringKick:
            kick = message.fds.first ?? -1
            resume()
        case Request.setVringCall: call = message.fds.first ?? -1
        case Request.setBackendChannel: channel = message.fds.first ?? -1
        default: break
        }
        if ![Request.setVringKick, Request.setVringCall, Request.setBackendChannel].contains(message.request) {
            for fd in message.fds { close(fd) }
        }
        if message.needsReply { reply(socket, to: message, Data(number: UInt64(0))) }
    }

    private func map(_ message: WireMessage) {
        let count: UInt32 = message.number(at: 0)
        for index in 0..<min(Int(count), message.fds.count) {
            let at = 8 + 32 * index
            let (start, size, offset): (UInt64, UInt64, UInt64) = (
                message.number(at: at), message.number(at: at + 8), message.number(at: at + 24)
            )
            if let host = mmap(nil, Int(size), PROT_READ | PROT_WRITE, MAP_SHARED, message.fds[index], off_t(offset)),
                host != MAP_FAILED
            {
                regions.append(Region(start: start, size: size, host: host))
            }
        }
    }

    private func forget() {
        for region in regions { munmap(region.host, Int(region.size)) }
        regions = []
        for fd in [kick, call, channel] where fd >= 0 { close(fd) }
        (kick, call, channel) = (-1, -1, -1)
        if let inflight { munmap(inflight, 4096) }
        inflight = nil
    }

    // MARK: Requests

    private func at(_ address: UInt64) -> UnsafeMutableRawPointer? {
        regions.first { address >= $0.start && address - $0.start < $0.size }.map { $0.host + Int(address - $0.start) }
    }

    /// Goes on with what the back end before had in hand.
    private func resume() {
        guard let inflight, let used = at(rings.used) else { return }
        let heads = (0..<Int(size)).filter { inflight[$0] != 0 }
        base = used.load(fromByteOffset: 2, as: UInt16.self) &+ UInt16(heads.count)
        for head in heads { work.withLock { if !isDropped { carryOut(UInt16(head)) } } }
    }

    private func takeRequests() {
        guard let available = at(rings.available) else { return }
        while work.withLock({ takeRequest(available) }) {}
    }

    /// - Returns: false when there is none.
    private func takeRequest(_ available: UnsafeMutableRawPointer) -> Bool {
        guard !isDropped, base != available.load(fromByteOffset: 2, as: UInt16.self) else { return false }
        let head = available.load(fromByteOffset: 4 + 2 * Int(base % size), as: UInt16.self)
        base &+= 1
        inflight?[Int(head)] = 1
        if holdsRequests { held += 1 } else { carryOut(head) }
        return true
    }

    private func carryOut(_ head: UInt16) {
        guard let table = at(rings.descriptors), let used = at(rings.used) else { return }
        func descriptor(_ index: UInt16) -> (address: UInt64, length: Int, next: UInt16) {
            let entry = table + 16 * Int(index)
            return (
                entry.load(as: UInt64.self), Int(entry.load(fromByteOffset: 8, as: UInt32.self)),
                entry.load(fromByteOffset: 14, as: UInt16.self)
            )
        }
        let first = descriptor(head)
        let data = descriptor(first.next)
        let status = descriptor(data.next)
        guard let header = at(first.address), let body = at(data.address) else { return }
        let place = Int(header.load(fromByteOffset: 8, as: UInt64.self)) * 512
        if header.load(as: UInt32.self) == 1 {
            disk.replaceSubrange(place..<place + data.length, with: UnsafeRawBufferPointer(start: body, count: data.length))
        } else {
            disk.withUnsafeBytes { body.copyMemory(from: $0.baseAddress! + place, byteCount: data.length) }
        }
        at(status.address)?.storeBytes(of: 0, as: UInt8.self)
        let index = used.load(fromByteOffset: 2, as: UInt16.self)
        let element = used + 4 + 8 * Int(index % size)
        element.storeBytes(of: UInt32(head), as: UInt32.self)
        element.storeBytes(of: UInt32(data.length), toByteOffset: 4, as: UInt32.self)
        // x86 keeps the order of stores; elsewhere system calls come in between.
        used.storeBytes(of: index &+ 1, toByteOffset: 2, as: UInt16.self)
        inflight?[Int(head)] = 0
        signal()
    }

    func signal() {
        var one: UInt64 = 1
        if call >= 0 { _ = write(call, &one, 8) }
    }
}
