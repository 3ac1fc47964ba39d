import Foundation
import TestSupport

/// A vhost-user-blk back end of the tests' own: a disk in memory.
///
/// With `tracksRequests` it notes what it has in hand in the in-flight memory,
/// by a format of its own: a byte a descriptor.
final class FakeDisk: FakeBackEnd, @unchecked Sendable {
    private var inflight: UnsafeMutablePointer<UInt8>?
    private var disk = [UInt8](repeating: 0, count: 4 << 20)
    /// Requests that are taken and never answered.
    var holdsRequests = false
    var capacity: UInt64 = 8192
    private(set) var held = 0
    private var heldHeads: [UInt16] = []

    init(
        _ directory: TemporaryDirectory, tracksRequests: Bool = false, connects: Bool = false,
        intercept: @escaping (FakeBackEnd, WireMessage, Int32) -> Bool = { _, _, _ in false }
    ) throws {
        // BACKEND_REQ, CONFIG and INFLIGHT_SHMFD.
        try super.init(
            directory, connects: connects, queues: 1, countedQueues: 1, features: 1 << 9,
            protocolFeatures: 1 << 5 | 1 << 9 | (tracksRequests ? 1 << 12 : 0), intercept: intercept)
    }

    override var config: Data { Data(number: capacity) }

    override func handleOther(_ message: WireMessage, _ socket: Int32) -> Bool {
        switch message.request {
        case Request.getInflight:
            let memory = open("/tmp", O_RDWR | 0o20200000, 0o600)  // O_TMPFILE
            ftruncate(memory, 4096)
            reply(
                socket, to: message,
                Data(number: UInt64(4096)) + Data(number: UInt64(0)) + message.payload.dropFirst(16), fds: [memory])
            close(memory)
            return true
        case Request.setInflight:
            let memory = mmap(nil, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, message.fds.first ?? -1, 0)
            inflight = memory.flatMap { $0 == MAP_FAILED ? nil : $0.assumingMemoryBound(to: UInt8.self) }
        default: break
        }
        return false
    }

    override func ended() {
        if let inflight { munmap(inflight, 4096) }
        inflight = nil
    }

    /// Goes on with what the back end before had in hand.
    override func started(_ index: Int) {
        guard let inflight, let used = at(queues[0].rings.used) else { return }
        let heads = (0..<Int(queues[0].size)).filter { inflight[$0] != 0 }
        queues[0].base = used.load(fromByteOffset: 2, as: UInt16.self) &+ UInt16(heads.count)
        for head in heads { touch { carryOut(UInt16(head)) } }
    }

    override func kicked(_ index: Int) { while touch({ takeRequest() }) {} }

    /// - Returns: false when there is none.
    private func takeRequest() -> Bool {
        guard let head = nextAvailable(0) else { return false }
        queues[0].base &+= 1
        inflight?[Int(head)] = 1
        guard holdsRequests else { return carryOut(head) }
        held += 1
        heldHeads.append(head)
        return true
    }

    /// Carries out what was held; on the disk's thread.
    func finishHeld() {
        holdsRequests = false
        for head in heldHeads { touch { carryOut(head) } }
        heldHeads = []
    }

    private func carryOut(_ head: UInt16) -> Bool {
        let parts = buffers(0, head)
        guard parts.count == 3, let header = parts[0].baseAddress, let body = parts[1].baseAddress else { return false }
        let place = Int(header.load(fromByteOffset: 8, as: UInt64.self)) * 512
        if header.load(as: UInt32.self) == 1 {
            disk.replaceSubrange(place..<place + parts[1].count, with: parts[1])
        } else {
            disk.withUnsafeBytes { body.copyMemory(from: $0.baseAddress! + place, byteCount: parts[1].count) }
        }
        parts[2].storeBytes(of: 0, as: UInt8.self)
        // The driver may reuse it at once.
        inflight?[Int(head)] = 0
        use(0, head, length: parts[1].count)
        return true
    }
}
