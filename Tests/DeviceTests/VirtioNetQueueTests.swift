import BatonRuntime
import TestSupport
import Testing
import Virtio

/// virtio-net's control queue, pairs of queues and offloads.
@Suite(.oneThread) struct VirtioNetQueueTests {
    final class Backend: NetBackend {
        struct Frame: Equatable {
            var bytes: [UInt8]
            var header: FrameHeader
            var queue: Int
        }
        var sent: [Frame] = []
        var ready: [Int] = []
        var used = 1
        var refusesQueues = false
        var allowed: NetOffloads = []
        let queues: Int
        let headers: Bool

        init(queues: Int, headers: Bool) {
            self.queues = queues
            self.headers = headers
            super.init(id: "n", backend: "test")
        }

        override var queueCount: Int { queues }
        override var carriesHeaders: Bool { headers }
        override func send(_ parts: UnsafeBufferPointer<UnsafeRawBufferPointer>, header: FrameHeader, queue: Int) {
            sent.append(Frame(bytes: parts.flatMap { Array($0) }, header: header, queue: queue))
        }
        override func receiveReady(queue: Int) { ready.append(queue) }
        override func useQueues(_ count: Int) -> Bool {
            if refusesQueues { return false }
            used = count
            return true
        }
        override func allow(_ offloads: NetOffloads) { allowed = offloads }
        func deliver(_ frame: [UInt8], _ header: FrameHeader = FrameHeader(), queue: Int = 0) -> Bool {
            frame.withUnsafeBytes { deliver($0, header: header, queue: queue) }
        }
    }

    private final class Card {
        let machine: TestMachine
        let backend: Backend
        let device: VirtioNet
        let driver: GuestDriver
        static let data = TestMachine.ramBase + 0x10_0000

        init(queues: Int = 1, headers: Bool = false, features: UInt64 = VirtioNetFeature.standard | Bit.mq) throws {
            machine = try TestMachine()
            backend = Backend(queues: queues, headers: headers)
            let slot = VirtioMMIO(slot: 0, line: Wire().line)
            device = VirtioNet(vm: machine.vm, backend: backend, mac: [0x52, 0x54, 0, 1, 2, 3], features: features)
            try slot.plug(device)
            try machine.vm.add(slot)
            try machine.vm.add(device)
            driver = GuestDriver(machine, slot)
            try machine.vm.start()
        }

        /// Gives a command to the control queue, which is the last.
        /// - Returns: the answer: 0 for success.
        func command(_ bytes: [UInt8], queue: Int? = nil) -> UInt8 {
            machine.store(bytes: bytes, at: Self.data)
            machine.store(0xff as UInt8, at: Self.data + 0x1000)
            let queue = driver.queues[queue ?? driver.queues.count - 1]
            queue.submit([
                .init(address: Self.data, length: 1, writable: false),
                .init(address: Self.data + 1, length: UInt32(bytes.count - 1), writable: false),
                .init(address: Self.data + 0x1000, length: 1, writable: true),
            ])
            let done = queue.reap()
            return done.map(\.length) == [1] ? machine.load(Self.data + 0x1000) : 0xee
        }

        /// Sends 60 bytes behind a header by a transmit queue.
        func transmit(_ queue: Int, _ header: FrameHeader = FrameHeader()) {
            machine.store(bytes: header.bytes + [0, 0] + Array(0..<60), at: Self.data + 0x2000)
            driver.queues[queue].submit([.init(address: Self.data + 0x2000, length: 72, writable: false)])
        }

        func offer(_ queue: Int) {
            driver.queues[queue].submit([.init(address: Self.data + 0x3000, length: 1526, writable: true)])
        }
    }

    private enum Bit {
        static let csum: UInt64 = 1, guestCsum: UInt64 = 1 << 1, guestOffloads: UInt64 = 1 << 2
        static let guestTSO4: UInt64 = 1 << 7, hostTSO4: UInt64 = 1 << 11
        static let control: UInt64 = 1 << 17, receive: UInt64 = 1 << 18, receiveExtra: UInt64 = 1 << 20
        static let mq: UInt64 = 1 << 22, address: UInt64 = 1 << 23
        static let all = GuestDriver.common | 0xffffff & ~(1 << 15)
    }

    private static let other: [UInt8] = [2, 0, 0, 0, 0, 9]

    private func frame(to address: [UInt8]) -> [UInt8] { address + Array(repeating: 7, count: 54) }

    @Test func offersOffloadsOnlyWhereFramesHaveHeaders() throws {
        let with = try Card(headers: true).driver.deviceFeatures
        let without = try Card(headers: false).driver.deviceFeatures
        let offloads: UInt64 = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 11 | 1 << 12 | 1 << 13
        #expect(with & offloads == offloads)
        #expect(without & offloads == 0)
        let plain = try Card(features: VirtioNetFeature.standard & ~Bit.control)
        #expect(plain.driver.deviceFeatures & (Bit.control | Bit.receive | Bit.mq | Bit.address) == 0)
        #expect(plain.device.queues.count == 2)
    }

    @Test func hasAPairForEachQueueOfTheBackEnd() throws {
        let card = try Card(queues: 3)
        #expect(card.device.queues.count == 7)
        #expect(card.driver.slot.mmioRead(offset: 0x108, width: 2) == 3)
        let single = try Card(queues: 3, features: VirtioNetFeature.standard)
        #expect(single.device.queues.count == 3)
        #expect(single.driver.slot.mmioRead(offset: 0x108, width: 2) == 1)
    }

    @Test func usesAsManyPairsAsTheDriverSays() throws {
        let card = try Card(queues: 3)
        card.driver.start(features: card.driver.deviceFeatures & Bit.all, queues: 7)
        #expect(card.backend.used == 1)
        // What waits in a pair that was not in use goes out with the command.
        card.transmit(3)
        #expect(card.backend.sent.isEmpty)
        #expect(card.command([4, 0, 2, 0]) == 0)
        #expect(card.backend.used == 2)
        #expect(card.backend.sent.map(\.queue) == [1])
        card.transmit(1)
        #expect(card.backend.sent.map(\.queue) == [1, 0])
        card.offer(2)
        #expect(card.backend.ready.last == 1)
        #expect(card.backend.deliver(frame(to: Self.other), queue: 1))
        #expect(card.driver.queues[2].reap().map(\.length) == [72])
        // Nothing comes in a pair that is not in use.
        card.offer(4)
        #expect(card.backend.deliver(frame(to: Self.other), queue: 2))
        #expect(card.driver.queues[4].usedIndex == 0)
        for wrong: [UInt8] in [
            [4, 0, 0, 0], [4, 0, 4, 0], [4, 0, 0, 0x80], [4, 0, 2], [4, 0, 2, 0, 0], [4, 1, 2, 0],
        ] {
            #expect(card.command(wrong) == 1, "\(wrong)")
        }
        #expect(card.backend.used == 2)
        card.backend.refusesQueues = true
        #expect(card.command([4, 0, 3, 0]) == 1)
        card.transmit(5)
        #expect(card.backend.sent.count == 2, "there are two pairs still")
        card.backend.refusesQueues = false
        card.driver.write(0x70, 0)
        #expect(card.backend.used == 1)
    }

    @Test func theControlQueueIsTheThirdForADriverThatKnowsOnePair() throws {
        let card = try Card(queues: 3)
        card.driver.start(features: GuestDriver.common | Bit.control | Bit.receive, queues: 3)
        #expect(card.command([0, 0, 0]) == 0)
        #expect(card.command([4, 0, 2, 0]) == 1, "it has not been negotiated")
        #expect(!card.driver.needsReset)
    }

    @Test func takesOnlyTheFramesThatTheDriverWants() throws {
        let card = try Card()
        card.driver.start(features: card.driver.deviceFeatures & Bit.all, queues: 3)
        func accepts(_ address: [UInt8]) -> Bool {
            card.offer(0)
            _ = card.backend.deliver(frame(to: address))
            let taken = !card.driver.queues[0].reap().isEmpty
            // The buffer is still there if not.
            if !taken {
                _ = card.command([0, 0, 1])
                _ = card.backend.deliver(frame(to: address))
                _ = card.driver.queues[0].reap()
                _ = card.command([0, 0, 0])
            }
            return taken
        }
        let own: [UInt8] = [0x52, 0x54, 0, 1, 2, 3], group: [UInt8] = [1, 0, 0x5e, 0, 0, 1]
        let broadcast = [UInt8](repeating: 0xff, count: 6)
        #expect(accepts(Self.other) && accepts(group), "all of them, until it says otherwise")
        #expect(card.command([0, 0, 0]) == 0)
        #expect(accepts(own) && accepts(broadcast))
        #expect(!accepts(Self.other) && !accepts(group))
        #expect(card.command([1, 0, 1, 0, 0, 0] + Self.other + [1, 0, 0, 0] + group) == 0)
        #expect(accepts(Self.other) && accepts(group))
        #expect(card.command([1, 0, 0, 0, 0, 0, 65, 0, 0, 0] + Array(repeating: 3, count: 65 * 6)) == 0)
        #expect(accepts(group) && !accepts(Self.other), "a table that is too long stands for all")
        #expect(card.command([1, 0, 0, 0, 0, 0, 0, 0, 0, 0]) == 0)
        #expect(card.command([0, 1, 1]) == 0)
        #expect(accepts(group))
        #expect(card.command([0, 3, 1]) == 0)
        #expect(!accepts(group))
        #expect(card.command([0, 5, 1]) == 0)
        #expect(!accepts(broadcast))
        #expect(card.command([0, 4, 1]) == 0)
        #expect(!accepts(own))
        for wrong: [UInt8] in [
            [0, 6, 1], [0, 0], [0, 0, 1, 1], [1, 0, 2, 0, 0, 0] + Self.other + [0, 0, 0, 0],
            [1, 0, 0xff, 0xff, 0xff, 0xff], [1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], [2, 0, 1, 0],
            [9, 9, 9],
        ] {
            #expect(card.command(wrong) == 1, "\(wrong)")
        }
        #expect(!card.driver.needsReset)
    }

    @Test func changesItsAddress() throws {
        let card = try Card()
        card.driver.start(features: card.driver.deviceFeatures & Bit.all, queues: 3)
        #expect(card.command([1, 1] + Self.other) == 0)
        #expect((0..<6).map { card.driver.slot.mmioRead(offset: 0x100 + $0, width: 1) } == Self.other.map(UInt64.init))
        #expect(card.command([1, 1, 1, 2]) == 1)
        card.driver.write(0x70, 0)
        #expect(card.driver.slot.mmioRead(offset: 0x100, width: 1) == 0x52, "a reset gives its own back")
    }

    @Test(arguments: [[UInt8](), [4]])
    func failsOnRequestsWithoutAHeader(_ bytes: [UInt8]) throws {
        let card = try Card()
        card.driver.start(features: card.driver.deviceFeatures & Bit.all, queues: 3)
        var buffers = [GuestQueue.Buffer(address: Card.data + 0x1000, length: 1, writable: true)]
        if !bytes.isEmpty { buffers.insert(.init(address: Card.data, length: 1, writable: false), at: 0) }
        card.driver.queues[2].submit(buffers)
        #expect(card.driver.needsReset)
    }

    @Test func failsOnRequestsWithoutRoomForTheAnswer() throws {
        let card = try Card()
        card.driver.start(features: card.driver.deviceFeatures & Bit.all, queues: 3)
        card.driver.queues[2].submit([.init(address: Card.data, length: 3, writable: false)])
        #expect(card.driver.needsReset)
    }

    // MARK: Offloads

    private func header(flags: UInt8 = 0, segmentation: UInt8 = 0) -> FrameHeader {
        var header = FrameHeader()
        header.flags = flags
        header.segmentation = segmentation
        header.segmentSize = segmentation == 0 ? 0 : 1460
        header.checksumStart = 34
        header.checksumOffset = 16
        return header
    }

    @Test func leavesToTheHostWhatWasNegotiated() throws {
        let card = try Card(headers: true)
        card.driver.start(features: GuestDriver.common | Bit.csum | Bit.hostTSO4, queues: 2)
        let whole = header(flags: 1, segmentation: 1)
        card.transmit(1, whole)
        #expect(card.backend.sent.map(\.header) == [whole])
        for wrong in [
            header(segmentation: 4), header(segmentation: 0x81), header(segmentation: 3), header(segmentation: 0x80),
        ] {
            card.transmit(1, wrong)
        }
        #expect(card.backend.sent.count == 1)
        card.transmit(1, header(flags: 0xfe))
        #expect(card.backend.sent.last?.header == header(), "flags that are the host's to set mean nothing")
        #expect(!card.driver.needsReset)
        // Without checksums nothing is left to the host.
        card.driver.start(queues: 2)
        card.backend.sent = []
        card.transmit(1, header(flags: 1))
        #expect(card.backend.sent.isEmpty)
    }

    @Test func takesFromTheHostWhatWasNegotiated() throws {
        let card = try Card(headers: true)
        #expect(card.backend.allowed == [])
        card.driver.start(
            features: GuestDriver.common | Bit.guestCsum | Bit.guestTSO4 | Bit.control | Bit.guestOffloads, queues: 3)
        #expect(card.backend.allowed == [.checksum, .tcp4])
        func arrives(_ header: FrameHeader) -> [UInt8]? {
            card.offer(0)
            #expect(card.backend.deliver(frame(to: Self.other), header))
            if card.driver.queues[0].reap().isEmpty { return nil }
            return card.machine.bytes(Card.data + 0x3000, 12)
        }
        let whole = header(flags: 1, segmentation: 1)
        #expect(arrives(whole) == whole.bytes + [1, 0])
        #expect(arrives(header(flags: 2)) == header(flags: 2).bytes + [1, 0])
        #expect(arrives(header(flags: 1, segmentation: 4)) == nil)
        #expect(card.command([5, 0, 0, 0, 0, 0, 0, 0, 0, 0]) == 0)
        #expect(card.backend.allowed == [])
        #expect(arrives(whole) == nil, "it was on its way")
        #expect(card.command([5, 0, 2, 0, 0, 0, 0, 0, 0, 0]) == 0)
        #expect(card.backend.allowed == [.checksum])
        #expect(card.command([5, 0, 0x82, 1, 0, 0, 0, 0, 0, 0]) == 1, "TSO6 was not negotiated")
        #expect(card.command([5, 0, 2]) == 1)
        card.driver.write(0x70, 0)
        #expect(card.backend.allowed == [])
    }

    // MARK: State

    @Test func keepsWhatTheDriverChose() throws {
        let card = try Card(queues: 3, headers: true)
        card.driver.start(features: card.driver.deviceFeatures & Bit.all, queues: 7)
        #expect(card.command([4, 0, 3, 0]) == 0)
        #expect(card.command([5, 0, 2, 0, 0, 0, 0, 0, 0, 0]) == 0)
        #expect(card.command([0, 0, 0]) == 0)
        #expect(card.command([1, 1] + Self.other) == 0)
        card.machine.vm.stop()
        let state = savedState(card.device)

        let next = try Card(queues: 3, headers: true)
        next.machine.vm.stop()
        // The rings are in RAM.
        for offset in stride(from: UInt64(0), to: 0x9_0000, by: 8) {
            next.machine.store(
                card.machine.load(TestMachine.ramBase + offset) as UInt64, at: TestMachine.ramBase + offset)
        }
        try loadState(state, into: next.device)
        #expect(savedState(next.device) == state)
        #expect(next.backend.used == 1, "nothing changes outside before it runs")
        try next.machine.vm.start()
        #expect(next.backend.used == 3)
        #expect(next.backend.allowed == [.checksum])
        next.machine.vm.loop.poll(timeout: 0)
        #expect(next.backend.ready.suffix(3) == [0, 1, 2])
        #expect(next.driver.slot.mmioRead(offset: 0x100, width: 1) == 2)

        // Fewer queues are not the same card.
        let smaller = try Card(queues: 2, headers: true)
        let error = #expect(throws: VMMError.self) { try loadState(state, into: smaller.device) }
        #expect(error?.message.contains("has 7 queues, this device 5") == true)
        // Nor is one whose back end has no headers.
        let plain = try Card(queues: 3)
        #expect(throws: VMMError.self) { try loadState(state, into: plain.device) }
    }
}
