import BatonRuntime
import Glibc
@testable import Virtio

/// Rings with any contents under every virtio device: the device answers or asks to be reset, and serves a driver that
/// behaves after that.
extension Target {
    static let virtQueues = Target(
        name: "virtqueue", longestInput: 1024, startsLong: true,
        seeds: {
            // A request of each kind of device: descriptors, each with a page of its own and a next one; then the chain
            // is made available.
            var descriptors: [UInt8] = []
            let shapes: [(length: UInt8, flags: UInt8)] = [(4, 1), (9, 3), (1, 2)]
            for (slot, shape) in shapes.enumerated() {
                descriptors += [0, 0, UInt8(slot), 0, UInt8(slot), 0, shape.length, shape.flags, UInt8(slot) + 1]
            }
            return (0..<4).map { (kind: UInt8) -> [UInt8] in
                [kind, 0xff, 0xff, 0, 0] + descriptors + [1, 0, 0, 2, 0, 4, 5, 0, 40]
            }
        },
        make: {
            let machines = try QueueMachine.Kind.allCases.map { try QueueMachine($0) }
            return { bytes in
                var input = Input(bytes)
                let machine = machines[Int(input.byte()) % machines.count]
                machine.run(&input)
            }
        })
}

/// A device in a virtio-mmio slot, and its driver.
private final class QueueMachine {
    enum Kind: CaseIterable { case block, entropy, console, net }

    private static let base: UInt64 = 0x8000_0000
    private static let size = 4 << 20
    private static let romBase: UInt64 = 0x1000
    private static let header = base + 0x20_0000
    private static let data = base + 0x20_1000
    private static let status = base + 0x20_3000

    private let kind: Kind
    private let vm: VirtualMachine
    private let ram: RAMBlock
    private let rom: RAMBlock
    private let slot: VirtioMMIO
    private let device: VirtioDevice
    private let chardev = InputChardev("c")
    private let network = InputNetwork("n")
    private let engine = IdleEngine()
    private var available: [UInt16] = []

    init(_ kind: Kind) throws {
        self.kind = kind
        vm = try VirtualMachine()
        ram = try makeRAM("ram", QueueMachine.size)
        rom = try makeRAM("rom", 4096)
        try vm.addressSpace.map(rom, at: QueueMachine.romBase, size: 4096, readOnly: true)
        try vm.addressSpace.map(ram, at: QueueMachine.base, size: UInt64(QueueMachine.size))
        slot = VirtioMMIO(slot: 0, line: InterruptLine { _ in })
        switch kind {
        case .block:
            let disk = try MemoryFile("disk")
            disk.fill(length: 1 << 20)
            var settings = BlockSettings()
            settings.isLocked = false
            settings.formatIsKnown = true
            settings.engine = try vm.blockEngines.engine(of: engine)
            let backend = try BlockBackend(id: "d", filename: disk.path, readOnly: false, settings: settings)
            var properties = VirtioBlock.Properties()
            properties.queueCount = 2
            device = VirtioBlock(vm: vm, backend: backend, properties: properties)
        case .entropy: device = VirtioEntropy(vm: vm)
        case .console:
            let console = VirtioConsole(vm: vm)
            try console.connect(chardev)
            device = console
        case .net:
            device = VirtioNet(
                vm: vm, backend: network, mac: [2, 0, 0, 0, 0, 1], features: VirtioNetFeature.standard | 1 << 22)
        }
        try slot.plug(device)
        try vm.add(slot)
        try vm.add(device)
        try vm.start()
    }

    // MARK: The driver

    private func read(_ offset: UInt64) -> UInt32 {
        UInt32(truncatingIfNeeded: slot.mmioRead(offset: offset, width: 4))
    }
    private func write(_ offset: UInt64, _ value: UInt32) {
        slot.mmioWrite(offset: offset, width: 4, value: UInt64(value))
    }
    private func store<T: FixedWidthInteger>(_ value: T, at address: UInt64) {
        let offset = address &- QueueMachine.base
        guard offset <= UInt64(QueueMachine.size - MemoryLayout<T>.size) else { return }
        ram.host.storeBytes(of: value.littleEndian, toByteOffset: Int(offset), as: T.self)
    }

    private func start(features: UInt64, size: UInt16) {
        write(0x70, 0)
        write(0x70, 3)
        for half in 0..<2 as Range<UInt32> {
            write(0x14, half)
            let offered = read(0x10)
            write(0x24, half)
            write(0x20, offered & UInt32(truncatingIfNeeded: features >> (32 * UInt64(half))))
        }
        write(0x70, 11)
        available = device.queues.map { _ in 0 }
        for index in device.queues.indices {
            let table = self.table(index)
            write(0x30, UInt32(index))
            write(0x38, UInt32(size))
            for (offset, address) in [(UInt64(0x80), table), (0x90, table + 0x4000), (0xa0, table + 0x8000)] {
                write(offset, UInt32(truncatingIfNeeded: address))
                write(offset + 4, UInt32(truncatingIfNeeded: address >> 32))
            }
            write(0x44, 1)
        }
        write(0x70, 15)
    }

    private func table(_ queue: Int) -> UInt64 { QueueMachine.base + UInt64(queue + 1) * 0x10000 }

    private func descriptor(
        _ slot: UInt16, of queue: Int, _ address: UInt64, _ length: UInt32, _ flags: UInt16, _ next: UInt16,
        in other: UInt64? = nil
    ) {
        let at = (other ?? table(queue)) + UInt64(slot) * 16
        store(address, at: at)
        store(length, at: at + 8)
        store(flags, at: at + 12)
        store(next, at: at + 14)
    }

    private func publish(_ head: UInt16, _ queue: Int) {
        let ring = table(queue) + 0x4000
        store(head, at: ring + 4 + UInt64(available[queue] % 8) * 2)
        available[queue] &+= 1
        store(available[queue], at: ring + 2)
    }

    private func turn() {
        var turns = 0
        repeat {
            vm.loop.poll(timeout: 0)
            turns += 1
            expect(turns < 100_000, "\(kind) does not come to an end")
        } while vm.loop.hasPostponed || device.isBusy
    }

    // MARK: An input

    func run(_ input: inout Input) {
        madvise(ram.host, QueueMachine.size, MADV_DONTNEED)
        chardev.room = .max
        engine.error = 0
        start(features: UInt64(input.number(UInt32.self)) | 0xffff_ffff << 32, size: 8)
        var steps = 0
        while !input.isAtEnd, steps < 300 {
            steps += 1
            step(&input)
        }
        turn()
        // Failed or not, its state goes through a checkpoint.
        for device in vm.devices { device.pause() }
        for device in vm.devices {
            let state = savedState(device)
            do throws(VMMError) { try loadState(state, into: device) } catch {
                found("'\(device.stateName)' refuses its own state: \(error.message)")
            }
            expect(savedState(device) == state, "'\(device.stateName)' is another after its state was loaded")
        }
        for device in vm.devices { device.resume() }
        turn()
        for offset in stride(from: 0, to: rom.usedLength, by: 8) {
            expect(
                rom.host.load(fromByteOffset: offset, as: UInt64.self) == 0,
                "\(kind) has written to memory that it may not")
        }
        expectService()
    }

    private func step(_ input: inout Input) {
        let lengths: [UInt32] = [0, 1, 12, 15, 16, 32, 48, 64, 511, 512, 513, 1526, 4096, 65536, 0x8000_0000, .max]
        switch input.byte() % 10 {
        case 0, 1:
            let queue = Int(input.byte()) % device.queues.count
            let slot = UInt16(input.byte() % 10)
            let table = input.byte() & 0x80 == 0 ? nil : QueueMachine.base + 0x10_0000
            let page = input.byte()
            let address: UInt64 =
                switch input.byte() {
                case 250: QueueMachine.romBase
                case 251: QueueMachine.base + UInt64(QueueMachine.size) - UInt64(page)
                case 252: input.number(UInt64.self)
                case 253: self.table(queue) + UInt64(page) * 0x100
                case 254: QueueMachine.base + 0x10_0000
                default: QueueMachine.header + UInt64(page) * 0x1000
                }
            let length = input.choice(lengths)
            let flags = input.byte()
            descriptor(
                slot, of: queue, address, length, flags & 0x80 == 0 ? UInt16(flags & 7) : UInt16(flags) << 8,
                UInt16(input.byte() % 12), in: table)
        case 2:
            let queue = Int(input.byte()) % device.queues.count
            publish(UInt16(input.byte() % 10), queue)
            write(0x50, UInt32(queue))
        case 3: turn()
        case 4:
            // Contents of buffers: headers of requests among them.
            let address = QueueMachine.header + UInt64(input.byte()) * 0x1000
            let count = Int(input.byte() & 31)
            for (index, byte) in input.take(count).enumerated() { store(byte, at: address + UInt64(index)) }
        case 5:
            let queue = Int(input.byte()) % device.queues.count
            // Rings themselves.
            let place = table(queue) + (input.bool() ? 0x4000 : 0x8000) + UInt64(input.byte())
            if place % 8 == 4, input.bool() { available[queue] = input.number(UInt16.self) }
            store(input.number(UInt16.self), at: place)
        case 6:
            switch kind {
            case .console: chardev.type(input.take(Int(input.byte())))
            case .net: network.deliver(&input)
            case .block: engine.error = Int32(input.byte())
            case .entropy: turn()
            }
        case 7:
            // Configuration space and the transport's registers.
            let offset = UInt64(input.number(UInt16.self) % 0x200)
            let width = [1, 2, 4, 8][Int(input.byte() & 3)]
            if input.bool() {
                slot.mmioWrite(offset: offset, width: width, value: input.number(UInt64.self))
            } else {
                _ = slot.mmioRead(offset: offset, width: width)
            }
        case 8:
            chardev.room = Int(input.byte())
            if chardev.room > 200 {
                chardev.room = .max
                chardev.frontend?.chardevWritable()
            }
        default:
            for device in vm.devices { device.pause() }
            for device in vm.devices { device.resume() }
        }
    }

    /// A driver that behaves is served.
    private func expectService() {
        turn()
        engine.error = 0
        chardev.room = .max
        chardev.frontend?.chardevWritable()
        madvise(ram.host, QueueMachine.size, MADV_DONTNEED)
        start(features: ~(1 << 29), size: 8)
        let queue: Int
        switch kind {
        case .block:
            queue = 0
            store(0xff as UInt8, at: QueueMachine.status)
            descriptor(0, of: 0, QueueMachine.header, 16, 1, 1)
            descriptor(1, of: 0, QueueMachine.data, 512, 3, 2)
            descriptor(2, of: 0, QueueMachine.status, 1, 2, 0)
        case .entropy:
            queue = 0
            descriptor(0, of: 0, QueueMachine.data, 64, 2, 0)
        case .console, .net:
            queue = 1
            descriptor(0, of: 1, QueueMachine.data, kind == .net ? 76 : 4, 0, 0)
        }
        publish(0, queue)
        write(0x50, UInt32(queue))
        turn()
        let used = ram.host.load(fromByteOffset: Int(table(queue) + 0x8002 - QueueMachine.base), as: UInt16.self)
        let needsReset = read(0x70) & 64 != 0
        if used != 1, !needsReset, kind == .entropy {
            // There is a limit of random bytes a second.
            let deadline = EventLoop.now + 5_000_000_000
            var count = used
            while count != 1, EventLoop.now < deadline {
                vm.loop.poll(timeout: 10_000_000)
                count = ram.host.load(fromByteOffset: Int(table(queue) + 0x8002 - QueueMachine.base), as: UInt16.self)
            }
            expect(count == 1, "\(kind) serves no more")
        } else {
            expect(used == 1 && !needsReset, "\(kind) serves no more")
        }
        if kind == .block {
            let status = ram.host.load(
                fromByteOffset: Int(QueueMachine.status - QueueMachine.base), as: UInt8.self)
            expect(status == 0, "a request of a driver that behaves ends with \(status)")
        }
        write(0x70, 0)
        expect(read(0x70) == 0, "\(kind) is not reset")
    }
}
