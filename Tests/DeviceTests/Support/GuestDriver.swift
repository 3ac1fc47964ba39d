import BatonRuntime
import Virtio

/// What a guest's virtio-mmio driver does, on the registers and in RAM.
final class GuestDriver {
    let machine: TestMachine
    let slot: VirtioMMIO
    private(set) var queues: [GuestQueue] = []

    static let common: UInt64 = 1 << 32 | 1 << 28

    init(_ machine: TestMachine, _ slot: VirtioMMIO) {
        self.machine = machine
        self.slot = slot
    }

    /// Of an entropy device, which is added to a machine that is then started.
    convenience init(ofEntropyIn machine: TestMachine, line: InterruptLine) throws {
        let slot = VirtioMMIO(slot: 0, line: line)
        let device = VirtioEntropy(vm: machine.vm)
        try slot.plug(device)
        try machine.vm.add(slot)
        try machine.vm.add(device)
        self.init(machine, slot)
        try machine.vm.start()
    }

    func read(_ offset: UInt64) -> UInt32 { UInt32(truncatingIfNeeded: slot.mmioRead(offset: offset, width: 4)) }
    func write(_ offset: UInt64, _ value: UInt32) { slot.mmioWrite(offset: offset, width: 4, value: UInt64(value)) }

    var status: UInt32 { read(0x70) }
    var needsReset: Bool { status & 64 != 0 }

    var deviceFeatures: UInt64 {
        write(0x14, 0)
        let low = UInt64(read(0x10))
        write(0x14, 1)
        return low | UInt64(read(0x10)) << 32
    }

    func negotiate(_ features: UInt64) {
        write(0x70, 0)
        write(0x70, 1)
        write(0x70, 3)
        write(0x24, 0)
        write(0x20, UInt32(truncatingIfNeeded: features))
        write(0x24, 1)
        write(0x20, UInt32(truncatingIfNeeded: features >> 32))
        write(0x70, 11)
    }

    func setUpQueue(_ index: Int, size: UInt16, at base: UInt64, eventIndex: Bool = false) -> GuestQueue {
        let queue = GuestQueue(machine, index: index, size: size, base: base, eventIndex: eventIndex) {
            [unowned self] in
            write(0x50, UInt32(index))
        }
        write(0x30, UInt32(index))
        write(0x38, UInt32(size))
        for (offset, address) in [(UInt64(0x80), queue.table), (0x90, queue.available), (0xa0, queue.used)] {
            write(offset, UInt32(truncatingIfNeeded: address))
            write(offset + 4, UInt32(truncatingIfNeeded: address >> 32))
        }
        write(0x44, 1)
        queues.append(queue)
        return queue
    }

    /// Negotiates and sets up `count` queues, 64 KiB apart from RAM + 64 KiB.
    func start(features: UInt64 = GuestDriver.common, queues count: Int, size: UInt16 = 8) {
        queues = []
        negotiate(features)
        for index in 0..<count {
            _ = setUpQueue(
                index, size: size, at: TestMachine.ramBase + UInt64(index + 1) * 0x10000,
                eventIndex: features & 1 << 29 != 0)
        }
        write(0x70, 15)
    }
}

/// A driver's side of a split ring.
final class GuestQueue {
    struct Buffer {
        var address: UInt64
        var length: UInt32
        var writable: Bool
    }

    let machine: TestMachine
    private let notify: () -> Void
    let index: Int
    let size: UInt16
    let table: UInt64
    let available: UInt64
    let used: UInt64
    let eventIndex: Bool
    private var nextDescriptor: UInt16 = 0
    var availableIndex: UInt16 = 0
    private var usedSeen: UInt16 = 0

    init(
        _ machine: TestMachine, index: Int, size: UInt16, base: UInt64, eventIndex: Bool, notify: @escaping () -> Void
    ) {
        self.machine = machine
        self.notify = notify
        self.index = index
        self.size = size
        self.eventIndex = eventIndex
        table = base
        available = base + 0x4000
        used = base + 0x8000
        for address in stride(from: base, to: base + 0x9000, by: 8) { machine.store(0 as UInt64, at: address) }
    }

    func descriptor(
        _ slot: UInt16, in table: UInt64? = nil, _ address: UInt64, _ length: UInt32, flags: UInt16, next: UInt16 = 0
    ) {
        let at = (table ?? self.table) + UInt64(slot) * 16
        machine.store(address, at: at)
        machine.store(length, at: at + 8)
        machine.store(flags, at: at + 12)
        machine.store(next, at: at + 14)
    }

    /// Makes a chain available, and notifies.
    func submit(_ buffers: [Buffer], kick: Bool = true) {
        let head = nextDescriptor
        for (index, buffer) in buffers.enumerated() {
            let slot = nextDescriptor
            nextDescriptor = (nextDescriptor + 1) % size
            let last = index == buffers.count - 1
            descriptor(
                slot, buffer.address, buffer.length, flags: (buffer.writable ? 2 : 0) | (last ? 0 : 1),
                next: last ? 0 : nextDescriptor)
        }
        publish(head, kick: kick)
    }

    func publish(_ head: UInt16, kick: Bool = true) {
        machine.store(head, at: available + 4 + UInt64(availableIndex % size) * 2)
        availableIndex &+= 1
        machine.store(availableIndex, at: available + 2)
        if kick { self.kick() }
    }

    /// Notifies, and turns the loop until nothing is put off or in hand.
    func kick() {
        ring()
        while machine.vm.loop.hasPostponed || machine.vm.devices.contains(where: { $0.isBusy }) {
            machine.vm.loop.poll(timeout: 1_000_000)
        }
    }

    /// Notifies, and no more.
    func ring() { notify() }

    var usedIndex: UInt16 { machine.load(used + 2) }

    /// The elements that the device has given back since the last call.
    func reap() -> [(head: UInt32, length: UInt32)] {
        var result: [(UInt32, UInt32)] = []
        while usedSeen != usedIndex {
            let at = used + 4 + UInt64(usedSeen % size) * 8
            result.append((machine.load(at), machine.load(at + 4)))
            usedSeen &+= 1
        }
        return result
    }
}
