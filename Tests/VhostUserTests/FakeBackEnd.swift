import Foundation
import TestSupport

/// A vhost-user back end of the tests' own, which a test can have misbehave at
/// any message. One client at a time, on a thread. Subclasses know what to do
/// with the queues.
class FakeBackEnd: @unchecked Sendable {
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
        static let setVringEnable: UInt32 = 18
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

    struct Queue {
        var size: UInt16 = 0
        var base: UInt16 = 0
        var rings: (descriptors: UInt64, used: UInt64, available: UInt64) = (0, 0, 0)
        var kick: Int32 = -1
        var call: Int32 = -1
        var isEnabled = false
    }

    let path: String
    /// Takes a message instead of the back end: returns true when it has.
    private let intercept: (FakeBackEnd, WireMessage, Int32) -> Bool
    /// Virtio features, and those of the protocol beside MQ and REPLY_ACK.
    private let features: UInt64
    private let protocolFeatures: UInt64
    /// What GET_QUEUE_NUM says.
    private let countedQueues: Int
    /// -1 for one that connects.
    private let listener: Int32
    private let lock = NSLock()
    private var connection: Int32 = -1
    private var log: [UInt32] = []
    private var connections = 0
    private var isEnding = false
    private var isListening: Bool
    /// Is held while guest RAM is worked on.
    private let work = NSLock()
    private var isDropped = false

    // Of the connection that is served.
    private var regions: [Region] = []
    var queues: [Queue]
    private(set) var channel: Int32 = -1

    /// - Parameters:
    ///   - connects: to whoever listens, again and again, instead of listening itself.
    ///   - queues: how many there are.
    init(
        _ directory: TemporaryDirectory, connects: Bool, queues: Int, countedQueues: Int, features: UInt64,
        protocolFeatures: UInt64, intercept: @escaping (FakeBackEnd, WireMessage, Int32) -> Bool
    ) throws {
        path = directory.file("backend.sock")
        self.features = features
        self.protocolFeatures = protocolFeatures
        self.countedQueues = countedQueues
        self.intercept = intercept
        self.queues = [Queue](repeating: Queue(), count: queues)
        isListening = !connects
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
        lock.withLock {
            isEnding = true
            // Once closed, the number may be another file's.
            if isListening { shutdown(listener, Int32(SHUT_RDWR)) }
        }
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
        lock.withLock {
            isListening = false
            if listener >= 0 { close(listener) }
        }
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
            var polled = ([socket] + queues.map(\.kick)).map { pollfd(fd: $0, events: Int16(POLLIN), revents: 0) }
            guard poll(&polled, nfds_t(polled.count), -1) > 0 else { continue }
            for index in queues.indices where polled[index + 1].revents & Int16(POLLIN) != 0 {
                var count: UInt64 = 0
                _ = read(queues[index].kick, &count, 8)
                kicked(index)
            }
            if polled[0].revents != 0 {
                guard let message = Wire.receive(socket) else { return }
                lock.withLock { log.append(message.request) }
                if !intercept(self, message, socket) { handle(message, socket) }
            }
        }
    }

    // MARK: For subclasses

    /// The configuration space.
    var config: Data { Data() }
    /// Whatever is to be done with a queue, whose client has kicked it or which has just been enabled.
    func kicked(_ index: Int) {}
    /// The queue has been given its kick eventfd, the last thing to be set.
    func started(_ index: Int) {}
    /// Messages that this class does not know.
    /// - Returns: whether it has been answered.
    func handleOther(_ message: WireMessage, _ socket: Int32) -> Bool { false }
    /// The connection has ended.
    func ended() {}

    /// Works on guest RAM, unless the connection has been dropped. Returns what `body` does, or false.
    @discardableResult
    func touch(_ body: () -> Bool) -> Bool { work.withLock { !isDropped && body() } }

    func reply(_ socket: Int32, to message: WireMessage, _ payload: Data, fds: [Int32] = []) {
        Wire.send(socket, WireMessage(request: message.request, flags: 1 | 4, payload: payload, fds: fds))
    }

    func handle(_ message: WireMessage, _ socket: Int32) {
        let index = Int(message.number(at: 0, as: UInt32.self)) & 0xff
        if handleOther(message, socket) { return }
        switch message.request {
        case Request.getFeatures:
            return reply(socket, to: message, Data(number: features | UInt64(1 << 32 | 1 << 30)))
        case Request.getProtocolFeatures:
            return reply(socket, to: message, Data(number: protocolFeatures | UInt64(1 << 0 | 1 << 3)))
        case Request.getQueueNum: return reply(socket, to: message, Data(number: UInt64(countedQueues)))
        case Request.getConfig:
            var config = config
            config += Data(count: max(0, message.payload.count - 12 - config.count))
            return reply(socket, to: message, message.payload.prefix(12) + config)
        case Request.setMemTable: map(message)
        case Request.setBackendChannel: channel = message.fds.first ?? -1
        default: if queues.indices.contains(index), handle(message, queue: index, socket) { return }
        }
        if ![Request.setVringKick, Request.setVringCall, Request.setBackendChannel].contains(message.request) {
            for fd in message.fds { close(fd) }
        }
        if message.needsReply { reply(socket, to: message, Data(number: UInt64(0))) }
    }

    /// - Returns: whether it has been answered.
    private func handle(_ message: WireMessage, queue index: Int, _ socket: Int32) -> Bool {
        switch message.request {
        case Request.getVringBase:
            if queues[index].kick >= 0 { close(queues[index].kick) }
            queues[index].kick = -1
            reply(socket, to: message, Data(number: UInt32(index)) + Data(number: UInt32(queues[index].base)))
            return true
        case Request.setVringNum: queues[index].size = message.number(at: 4)
        case Request.setVringBase: queues[index].base = message.number(at: 4)
        case Request.setVringAddr:
            queues[index].rings = (message.number(at: 8), message.number(at: 16), message.number(at: 24))
        case Request.setVringKick:
            queues[index].kick = message.fds.first ?? -1
            started(index)
        case Request.setVringCall: queues[index].call = message.fds.first ?? -1
        case Request.setVringEnable:
            queues[index].isEnabled = message.number(at: 4, as: UInt32.self) != 0
            kicked(index)
        default: break
        }
        return false
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
        for fd in queues.flatMap({ [$0.kick, $0.call] }) + [channel] where fd >= 0 { close(fd) }
        queues = [Queue](repeating: Queue(), count: queues.count)
        channel = -1
        ended()
    }

    // MARK: Rings

    func at(_ address: UInt64) -> UnsafeMutableRawPointer? {
        regions.first { address >= $0.start && address - $0.start < $0.size }.map { $0.host + Int(address - $0.start) }
    }

    /// The head of the next request; nil when there is none.
    func nextAvailable(_ index: Int) -> UInt16? {
        let queue = queues[index]
        guard let available = at(queue.rings.available),
            queue.base != available.load(fromByteOffset: 2, as: UInt16.self)
        else { return nil }
        return available.load(fromByteOffset: 4 + 2 * Int(queue.base % queue.size), as: UInt16.self)
    }

    /// The buffers of a request.
    func buffers(_ index: Int, _ head: UInt16) -> [UnsafeMutableRawBufferPointer] {
        guard let table = at(queues[index].rings.descriptors) else { return [] }
        var result: [UnsafeMutableRawBufferPointer] = []
        var place = Int(head)
        while result.count < 8 {
            let entry = table + 16 * place
            let length = Int(entry.load(fromByteOffset: 8, as: UInt32.self))
            guard let body = at(entry.load(as: UInt64.self)) else { return [] }
            result.append(UnsafeMutableRawBufferPointer(start: body, count: length))
            guard entry.load(fromByteOffset: 12, as: UInt16.self) & 1 != 0 else { break }
            place = Int(entry.load(fromByteOffset: 14, as: UInt16.self))
        }
        return result
    }

    /// Gives a request back, and tells the client.
    func use(_ index: Int, _ head: UInt16, length: Int) {
        let queue = queues[index]
        guard let used = at(queue.rings.used) else { return }
        let place = used.load(fromByteOffset: 2, as: UInt16.self)
        let element = used + 4 + 8 * Int(place % queue.size)
        element.storeBytes(of: UInt32(head), as: UInt32.self)
        element.storeBytes(of: UInt32(length), toByteOffset: 4, as: UInt32.self)
        // x86 keeps the order of stores; elsewhere system calls come in between.
        used.storeBytes(of: place &+ 1, toByteOffset: 2, as: UInt16.self)
        signal(index)
    }

    func signal(_ index: Int = 0) {
        var one: UInt64 = 1
        if queues[index].call >= 0 { _ = write(queues[index].call, &one, 8) }
    }
}
