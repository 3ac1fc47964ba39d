import BatonRuntime
import TestSupport
import Testing
import Virtio

/// Rings with random contents, under every device: whatever a driver puts
/// there, the device answers or asks to be reset, and works after a reset.
@Suite(.oneThread) struct VirtioRingFuzzTests {
    final class Host: NetBackend {
        override var queueCount: Int { 2 }
        override var carriesHeaders: Bool { true }
        init() { super.init(id: "n", backend: "test") }
        override func useQueues(_ count: Int) -> Bool { true }
        func deliver(_ length: Int, _ random: inout Randomness) {
            var header = FrameHeader()
            header.flags = UInt8.random(in: 0...3, using: &random)
            header.segmentation = [0, 0, 1, 4, 0x81, 0xff][Int.random(in: 0..<6, using: &random)]
            let queue = Int.random(in: 0..<2, using: &random)
            [UInt8](repeating: 7, count: length).withUnsafeBytes { _ = deliver($0, header: header, queue: queue) }
        }
    }

    private enum Kind: CaseIterable { case block, entropy, console, ports, net }

    private static let base = TestMachine.ramBase
    private static let end = TestMachine.ramBase + UInt64(TestMachine.ramSize)

    private func descriptor(_ random: inout Randomness) -> (
        address: UInt64, length: UInt32, flags: UInt16, next: UInt16
    ) {
        let address: UInt64
        switch Int.random(in: 0..<16, using: &random) {
        case 0: address = random.next()
        case 1: address = Self.end - UInt64.random(in: 0..<64, using: &random)
        case 2: address = TestMachine.romBase
        // Where the rings are: devices may overwrite them.
        case 3: address = Self.base + 0x10000 + UInt64.random(in: 0..<0x9000, using: &random)
        default: address = Self.base + 0x10_0000 + UInt64.random(in: 0..<0x10_0000, using: &random)
        }
        let lengths: [UInt32] = [0, 1, 12, 15, 16, 16, 32, 48, 512, 512, 513, 1526, 4096, 65536, 0x8000_0000, .max]
        let flags: [UInt16] = [0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 4, 5, 6, 7, 8, 0xffff]
        return (
            address, lengths[Int.random(in: 0..<lengths.count, using: &random)],
            flags[Int.random(in: 0..<flags.count, using: &random)],
            UInt16.random(in: 0..<(Bool.random(using: &random) ? 8 : 12), using: &random)
        )
    }

    /// A chain as a driver's, with one thing wrong now and then.
    private func mild(_ queue: GuestQueue, _ random: inout Randomness) {
        let header = Self.base + 0x20_0000
        let machine = queue.machine
        machine.store(UInt32.random(in: 0..<15, using: &random), at: header)
        machine.store(random.next() >> UInt64.random(in: 48..<64, using: &random), at: header + 8)
        queue.descriptor(0, header, 16, flags: 1, next: 1)
        let writable: UInt16 = Bool.random(using: &random) ? 2 : 0
        queue.descriptor(
            1, header + 0x1000, UInt32.random(in: 1..<5, using: &random) * 512, flags: writable | 1, next: 2)
        queue.descriptor(2, header + 0x3000, 1, flags: 2)
        if Int.random(in: 0..<24, using: &random) == 0 {
            let wrong = descriptor(&random)
            let slot = UInt16.random(in: 0..<3, using: &random)
            queue.descriptor(slot, wrong.address, wrong.length, flags: wrong.flags, next: wrong.next)
        }
        queue.publish(0)
    }

    /// After all that a well-behaved driver is served.
    private func expectService(
        _ kind: Kind, _ machine: TestMachine, _ driver: GuestDriver, _ device: VirtioDevice, _ chardev: TestChardev
    ) throws {
        driver.start(features: driver.deviceFeatures & ~(1 << 29), queues: device.queues.count)
        let (header, data, status) = (Self.base + 0x20_0000, Self.base + 0x20_1000, Self.base + 0x20_3000)
        let queue: GuestQueue
        switch kind {
        case .block:
            queue = driver.queues[0]
            machine.store(UInt32(0), at: header)
            machine.store(UInt64(0), at: header + 8)
            machine.store(UInt8(0xff), at: status)
            queue.descriptor(0, header, 16, flags: 1, next: 1)
            queue.descriptor(1, data, 512, flags: 3, next: 2)
            queue.descriptor(2, status, 1, flags: 2)
        case .entropy:
            queue = driver.queues[0]
            queue.descriptor(0, data, 64, flags: 2)
        case .console, .ports:
            chardev.dropPending()
            queue = driver.queues[1]
            queue.descriptor(0, data, 4, flags: 0)
        case .net:
            queue = driver.queues[1]
            machine.store(bytes: [UInt8](repeating: 0, count: 76), at: data)
            queue.descriptor(0, data, 76, flags: 0)
        }
        queue.publish(0)
        #expect(machine.wait { queue.usedIndex == 1 } && !driver.needsReset, "\(kind) serves no more")
        if kind == .block { #expect(machine.load(status, as: UInt8.self) == 0) }
    }

    @Test func devicesOutliveWhateverIsInTheirRings() throws {
        let directory = try TemporaryDirectory()
        try directory.writeSparse("disk", size: 1 << 20)
        for kind in Kind.allCases {
            let machine = try TestMachine()
            let slot = VirtioMMIO(slot: 0, line: Wire().line)
            let chardev = TestChardev()
            let host = Host()
            let device: VirtioDevice
            switch kind {
            case .block:
                let backend = try BlockBackend(id: "d", filename: directory.file("disk"), readOnly: false)
                device = VirtioBlock(vm: machine.vm, backend: backend, serial: "s")
            case .entropy: device = VirtioEntropy(vm: machine.vm)
            case .console:
                let console = VirtioSerial(vm: machine.vm)
                try console.plug(.init(isConsole: true, chardev: chardev))
                device = console
            case .ports:
                let serial = VirtioSerial(vm: machine.vm, maxPorts: 2)
                var port = VirtioSerialPort.Options(isConsole: false, chardev: chardev)
                port.name = "port"
                try serial.plug(port)
                device = serial
            case .net:
                device = VirtioNet(
                    vm: machine.vm, backend: host, mac: [2, 0, 0, 0, 0, 1],
                    features: VirtioNetFeature.standard | 1 << 22)
            }
            try slot.plug(device)
            try machine.vm.add(slot)
            try machine.vm.add(device)
            try machine.vm.start()
            let driver = GuestDriver(machine, slot)
            var random = Randomness(seed: 99)
            var failures = 0
            var served = 0
            for round in 0..<1500 {
                let features = driver.deviceFeatures & (round % 2 == 0 ? .max : ~(1 << 29))
                driver.start(features: features, queues: device.queues.count)
                for _ in 0..<12 {
                    let queue = driver.queues[Int.random(in: 0..<driver.queues.count, using: &random)]
                    for slot in UInt16(0)..<8 {
                        let d = descriptor(&random)
                        queue.descriptor(slot, d.address, d.length, flags: d.flags, next: d.next)
                        // Tables for indirect descriptors, and requests.
                        let inner = descriptor(&random)
                        queue.descriptor(
                            slot, in: Self.base + 0x10_0000 + UInt64(slot) * 64, inner.address, inner.length,
                            flags: inner.flags, next: inner.next)
                    }
                    if round % 4 < 2 {
                        mild(queue, &random)
                        continue
                    }
                    if Int.random(in: 0..<20, using: &random) == 0 {
                        queue.availableIndex = UInt16.random(in: 0...UInt16.max, using: &random)
                    }
                    queue.publish(UInt16.random(in: 0..<9, using: &random))
                    chardev.type([1, 2, 3])
                    host.deliver(Int.random(in: 1..<2000, using: &random), &random)
                    if chardev.pending.count > 1000 { chardev.dropPending() }
                }
                served += Int(device.queues.reduce(0) { $0 &+ $1.nextUsed })
                if driver.needsReset { failures += 1 }
                // Failed or not, its state goes through a checkpoint.
                for device in machine.vm.devices { device.pause() }
                let state = savedState(device)
                try loadState(state, into: device)
                #expect(savedState(device) == state)
                for device in machine.vm.devices { device.resume() }
                driver.write(0x70, 0)
                #expect(driver.status == 0)
            }
            #expect(failures > 100 && served > 100, "\(kind): \(failures) failures, \(served) served")
            // Descriptors that let a device write there were refused.
            let rom = try #require(machine.vm.addressSpace.ramRange(containing: TestMachine.romBase)?.block)
            let written = (0..<rom.usedLength).filter { rom.host.load(fromByteOffset: $0, as: UInt8.self) != 0 }
            #expect(written.isEmpty, "\(kind): \(written.count) bytes of the ROM were written")
            try expectService(kind, machine, driver, device, chardev)
        }
    }
}
