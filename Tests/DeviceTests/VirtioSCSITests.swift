import BatonRuntime
import Foundation
import TestSupport
import Testing
import Virtio

@Suite(.oneThread) struct VirtioSCSITests {
    let machine: TestMachine
    let directory: TemporaryDirectory
    let factory: DeviceFactory
    let slot = VirtioMMIO(slot: 0, line: Wire().line)
    let driver: GuestDriver
    let engine = HeldEngine()

    private static let request = TestMachine.ramBase + 0x20_0000
    private static let response = TestMachine.ramBase + 0x21_0000
    private static let data = TestMachine.ramBase + 0x22_0000
    private static let size = 1 << 20

    init() throws {
        machine = try TestMachine()
        directory = try TemporaryDirectory()
        factory = DeviceFactory(vm: machine.vm, memory: GuestMemory())
        factory.add([slot])
        driver = GuestDriver(machine, slot)
    }

    /// A device with disks `d` and more, as the command line says, which the driver has set up.
    @discardableResult
    private func start(
        _ disks: [String] = ["scsi-hd,drive=d0,serial=S1"], held: Bool = false, readOnly: Bool = false
    ) throws -> VirtioSCSI {
        for index in 0..<3 {
            var contents = Data(count: Self.size)
            for place in 0..<Self.size { contents[place] = UInt8(truncatingIfNeeded: place / 512 + index) }
            try directory.write("disk\(index)", contents)
            var settings = BlockSettings()
            settings.formatIsKnown = true
            settings.discards = true
            if held { settings.engine = try machine.vm.blockEngines.engine(of: engine) }
            try machine.vm.add(
                BlockBackend(
                    id: "d\(index)", filename: directory.file("disk\(index)"), readOnly: readOnly, settings: settings))
        }
        for text in ["virtio-scsi-device,id=s"] + disks {
            try factory.add(KeyValueOptions(text, impliedKey: "driver"))
        }
        try machine.vm.add(slot)
        try machine.vm.start()
        driver.start(features: driver.deviceFeatures & ~(1 << 29), queues: 3, size: 16)
        return try #require(slot.device as? VirtioSCSI)
    }

    // MARK: The driver's side

    struct Result: Equatable {
        var response: UInt8
        var status: UInt8
        var sense: [UInt8]
        var residual: UInt32
        var data: [UInt8] = []

        static let good = Result(response: 0, status: 0, sense: [], residual: 0)
        static func failed(_ key: UInt8, _ code: UInt8, _ qualifier: UInt8 = 0) -> [UInt8] { [key, code, qualifier] }
    }

    private func submit(
        _ cdb: [UInt8], target: UInt8 = 0, lun: UInt16 = 0, out: [UInt8] = [], room: Int = 0, kick: Bool = true
    ) {
        var request: [UInt8] = [1, target, UInt8(lun >> 8) | 0x40, UInt8(lun & 0xff), 0, 0, 0, 0]
        request += [UInt8](repeating: 0, count: 11) + cdb + [UInt8](repeating: 0, count: 32 - cdb.count)
        machine.store(bytes: request, at: Self.request)
        machine.store(bytes: [UInt8](repeating: 0xee, count: 108), at: Self.response)
        machine.store(bytes: out, at: Self.data)
        var buffers = [GuestQueue.Buffer(address: Self.request, length: UInt32(request.count), writable: false)]
        if !out.isEmpty { buffers.append(.init(address: Self.data, length: UInt32(out.count), writable: false)) }
        buffers.append(.init(address: Self.response, length: 108, writable: true))
        if room > 0 { buffers.append(.init(address: Self.data, length: UInt32(room), writable: true)) }
        driver.queues[2].submit(buffers, kick: kick)
    }

    private func result(room: Int = 0) -> Result {
        let senseLength: UInt32 = machine.load(Self.response)
        let sense = machine.bytes(Self.response + 12, 18)
        let residual: UInt32 = machine.load(Self.response + 4)
        return Result(
            response: machine.load(Self.response + 11), status: machine.load(Self.response + 10),
            sense: senseLength == 18 && sense[0] == 0x70 ? [sense[2], sense[12], sense[13]] : [], residual: residual,
            data: room > 0 ? machine.bytes(Self.data, max(0, room - Int(residual))) : [])
    }

    private func command(
        _ cdb: [UInt8], target: UInt8 = 0, lun: UInt16 = 0, out: [UInt8] = [], room: Int = 0
    ) throws -> Result {
        submit(cdb, target: target, lun: lun, out: out, room: room)
        try #require(driver.queues[2].reap().count == 1)
        return result(room: room)
    }

    private func big<T: FixedWidthInteger>(_ value: T) -> [UInt8] { littleEndianBytes(value.byteSwapped) }

    private func disk(_ range: Range<Int>, _ index: Int = 0) throws -> [UInt8] {
        Array(try Data(contentsOf: URL(fileURLWithPath: directory.file("disk\(index)")))[range])
    }

    // MARK: Tests

    @Test("a disk says what it is")
    func identity() throws {
        try start()
        let inquiry = try command([0x12, 0, 0, 0, 36, 0], room: 36)
        #expect(inquiry.status == 0 && inquiry.residual == 0 && inquiry.data[0] == 0)
        #expect(String(decoding: inquiry.data[8...], as: UTF8.self) == "BATON   BATON HARDDISK  1.0 ")
        #expect(try command([0x12, 1, 0x80, 0, 255, 0], room: 64).data == [0, 0x80, 0, 2] + Array("S1".utf8))
        #expect(try command([0x12, 1, 0, 0, 255, 0], room: 64).data == [0, 0, 0, 6, 0, 0x80, 0x83, 0xb0, 0xb1, 0xb2])
        #expect(try command([0x12, 1, 0xb2, 0, 255, 0], room: 64).data == [0, 0xb2, 0, 4, 0, 0xe0, 2, 0])
        let capacity = try command([0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], room: 8)
        #expect(capacity.data == big(UInt32(Self.size / 512 - 1)) + big(UInt32(512)))
        let longer = try command([0x9e, 0x10] + [UInt8](repeating: 0, count: 8) + big(UInt32(32)), room: 32)
        #expect(Array(longer.data[..<8]) == big(UInt64(Self.size / 512 - 1)) && longer.data[14] == 0x80)
        let caching = try command([0x1a, 8, 8, 0, 64, 0], room: 64)
        #expect(Array(caching.data[..<7]) == [23, 0, 0, 0, 8, 18, 4])
        #expect(try command([0, 0, 0, 0, 0, 0]) == .good)
        #expect(try command([0xff]).sense == Result.failed(5, 0x20))
        #expect(try command([0x12, 1, 0x99, 0, 255, 0], room: 64).sense == Result.failed(5, 0x24))
        // Less is taken than there is.
        #expect(try command([0x12, 0, 0, 0, 5, 0], room: 36).residual == 31)
    }

    @Test("blocks are read and written, in scattered buffers too")
    func blocks() throws {
        try start()
        for (cdb, block) in [
            ([0x08, 0, 0, 3, 2, 0], 3), ([0x28, 0, 0, 0, 0, 7, 0, 0, 2, 0], 7),
            ([0xa8, 0, 0, 0, 0, 9, 0, 0, 0, 2, 0, 0], 9), ([0x88, 0, 0, 0, 0, 0, 0, 0, 0, 11, 0, 0, 0, 2, 0, 0], 11),
        ] as [([UInt8], Int)] {
            let result = try command(cdb, room: 1024)
            #expect(result.status == 0 && result.residual == 0)
            #expect(try result.data == disk(block * 512..<(block + 2) * 512))
        }
        let bytes = (0..<1024).map { UInt8(truncatingIfNeeded: $0 &* 7) }
        for (cdb, block) in [
            ([0x0a, 0, 0, 30, 2, 0], 30), ([0x2a, 0, 0, 0, 0, 40, 0, 0, 2, 0], 40),
            ([0x8a, 0, 0, 0, 0, 0, 0, 0, 0, 50, 0, 0, 0, 2, 0, 0], 50),
        ] as [([UInt8], Int)] {
            #expect(try command(cdb, out: bytes) == .good)
            #expect(try disk(block * 512..<(block + 2) * 512) == bytes)
        }
        #expect(try command([0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]) == .good)
        // More room than is asked for, and less.
        #expect(try command([0x28, 0, 0, 0, 0, 7, 0, 0, 1, 0], room: 1024).residual == 512)
        #expect(try command([0x28, 0, 0, 0, 0, 7, 0, 0, 2, 0], room: 1023).response == 1)
        #expect(try command([0x2a, 0, 0, 0, 0, 7, 0, 0, 2, 0], out: [1]).response == 1)
        // Not within the disk.
        let last = UInt32(Self.size / 512)
        #expect(try command([0x28, 0] + big(last) + [0, 0, 1, 0], room: 512).sense == Result.failed(5, 0x21))
        #expect(
            try command([0x88, 0] + big(UInt64.max) + big(UInt32.max) + [0, 0], room: 512).sense
                == Result.failed(5, 0x21))
        // What is not offered.
        #expect(try command([0x2a, 8, 0, 0, 0, 7, 0, 0, 1, 0], out: bytes).sense == Result.failed(5, 0x24))
        #expect(!driver.needsReset)
    }

    @Test("ranges are given back and zeroed")
    func ranges() throws {
        try start()
        func list(_ block: UInt64, _ count: UInt32, _ ranges: UInt16 = 1) -> [UInt8] {
            big(6 + 16 * ranges) + big(16 * ranges) + [0, 0, 0, 0] + big(block) + big(count) + [0, 0, 0, 0]
        }
        #expect(try command([0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], out: list(16, 8)) == .good)
        #expect(try disk(16 * 512..<24 * 512).allSatisfy { $0 == 0 })
        #expect(try disk(24 * 512..<25 * 512).allSatisfy { $0 == 24 })
        #expect(try command([0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], out: list(0, 8, 2)).sense == Result.failed(5, 0x26))
        #expect(
            try command([0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], out: list(1 << 50, 8)).sense == Result.failed(5, 0x21))
        let same: [UInt8] = [0x93, 0] + big(UInt64(32)) + big(UInt32(4)) + [0, 0]
        #expect(try command(same, out: [UInt8](repeating: 0, count: 512)) == .good)
        #expect(try disk(32 * 512..<36 * 512).allSatisfy { $0 == 0 })
        #expect(try command(same, out: [UInt8](repeating: 1, count: 512)).sense == Result.failed(5, 0x24))
        #expect(try command([0x93, 9] + big(UInt64(40)) + big(UInt32(4)) + [0, 0]) == .good)
        #expect(try disk(40 * 512..<44 * 512).allSatisfy { $0 == 0 })
        #expect(try disk(44 * 512..<45 * 512).allSatisfy { $0 == 44 })
    }

    @Test("targets and logical units are found, and those that are not there are told")
    func addresses() throws {
        try start(["scsi-hd,drive=d0,scsi-id=5,lun=0", "scsi-hd,drive=d1,scsi-id=5", "scsi-cd,drive=d2"])
        #expect(try command([0, 0, 0, 0, 0, 0], target: 1).response == 3)
        #expect(try command([0, 0, 0, 0, 0, 0], target: 5, lun: 1) == .good)
        #expect(try command([0, 0, 0, 0, 0, 0], target: 5, lun: 2).sense == Result.failed(5, 0x25))
        #expect(try command([0x12, 0, 0, 0, 36, 0], target: 5, lun: 2, room: 36).data[0] == 0x7f)
        for lun in [UInt16(0), 7] {
            let luns = try command([0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], target: 5, lun: lun, room: 256).data
            #expect(luns == [0, 0, 0, 16, 0, 0, 0, 0] + [0, 0, 0, 0, 0, 0, 0, 0] + [0, 1, 0, 0, 0, 0, 0, 0])
        }
        #expect(
            try command([0x28, 0, 0, 0, 0, 7, 0, 0, 1, 0], target: 5, lun: 1, room: 512).data
                == [UInt8](repeating: 8, count: 512))
        // The CD has blocks of 2048 bytes, and is not written.
        #expect(try command([0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], room: 8).data == big(UInt32(511)) + big(UInt32(2048)))
        #expect(
            try command([0x28, 0, 0, 0, 0, 1, 0, 0, 1, 0], room: 2048).data == disk(2048..<4096, 2))
        #expect(
            try command([0x2a, 0, 0, 0, 0, 1, 0, 0, 1, 0], out: [UInt8](repeating: 0, count: 2048)).sense
                == Result.failed(7, 0x27))
        #expect(try command([0x43, 0, 0, 0, 0, 0, 0, 0, 20, 0], room: 20).data[..<4] == [0, 18, 1, 1])
    }

    @Test("disks that find no place are refused as in QEMU")
    func places() throws {
        try start(["scsi-hd,drive=d0,scsi-id=1,lun=1"])
        for (text, message) in [
            ("scsi-hd,drive=d1,scsi-id=1,lun=1", "lun already used by another disk"),
            ("scsi-hd,drive=d1,scsi-id=256", "bad scsi device id: 256"),
            ("scsi-hd,drive=d1,lun=16384", "bad scsi device lun: 16384"),
            ("scsi-hd,drive=d1,channel=1", "bad scsi channel id: 1"), ("scsi-hd", "drive property not set"),
            ("scsi-hd,drive=d0", "Drive 'd0' is already in use by another device"),
            ("scsi-hd,drive=d1,bus=t.0", "Bus 't.0' not found"),
        ] {
            let error = #expect(throws: VMMError.self) {
                try factory.add(KeyValueOptions(text, impliedKey: "driver"))
            }
            #expect(error?.message == message)
        }
    }

    @Test("a request that is not done goes on in another VMM, once")
    func update() throws {
        let device = try start(held: true)
        submit([0x28, 0, 0, 0, 0, 7, 0, 0, 2, 0], room: 1024, kick: false)
        driver.queues[2].ring()
        #expect(engine.held.count == 1 && driver.queues[2].reap().isEmpty && device.isBusy)
        device.hold()
        engine.end(0, error: 125)
        #expect(machine.wait { !device.isBusy })
        machine.vm.stop()
        let state = savedState(device)
        try loadState(state, into: device)
        #expect(savedState(device) == state)
        try machine.vm.start()
        #expect(machine.wait { engine.held.count == 1 })
        let request = engine.held[0]
        #expect(request.pointee.offset == 7 * 512 && request.pointee.length == 1024)
        engine.end(0)
        #expect(machine.wait { driver.queues[2].usedIndex == 1 })
        #expect(result().status == 0 && driver.queues[2].reap().map(\.length) == [108 + 1024])
    }

    @Test("errors are sense data, and a task management function waits for what is in hand")
    func errors() throws {
        let device = try start(held: true)
        submit([0x28, 0, 0, 0, 0, 7, 0, 0, 2, 0], room: 1024, kick: false)
        driver.queues[2].ring()
        func manage(_ function: UInt32, target: UInt8 = 0, lun: UInt8 = 0) {
            let bytes = littleEndianBytes(UInt32(0)) + littleEndianBytes(function) + [1, target, 0x40, lun]
            machine.store(bytes: bytes + [UInt8](repeating: 0, count: 12), at: Self.data + 0x8000)
            machine.store(UInt8(0xee), at: Self.data + 0x9000)
            driver.queues[0].submit(
                [
                    .init(address: Self.data + 0x8000, length: 24, writable: false),
                    .init(address: Self.data + 0x9000, length: 1, writable: true),
                ], kick: false)
            driver.queues[0].ring()
        }
        var answer: UInt8 { machine.load(Self.data + 0x9000) }
        manage(7)
        #expect(answer == 10)
        manage(5)
        #expect(answer == 0xee)
        engine.end(0, error: EIO)
        #expect(machine.wait { driver.queues[2].usedIndex == 1 && driver.queues[0].usedIndex == 2 })
        #expect(answer == 0 && result().sense == Result.failed(3, 0x11) && result().status == 2)
        manage(7)
        #expect(answer == 0)
        manage(5, target: 9)
        #expect(answer == 3)
        manage(5, lun: 9)
        #expect(answer == 12)
        manage(2)
        #expect(answer == 11)
        #expect(!device.isBusy && !driver.needsReset)
    }

    @Test("another size is told by an event, and by the next command")
    func resize() throws {
        let device = try start()
        let event = Self.data + 0x8000
        try #require(machine.vm.blockBackend("d0")).resize(to: 2 << 20)
        driver.queues[1].submit([.init(address: event, length: 16, writable: true)])
        #expect(driver.queues[1].reap().map(\.length) == [16])
        #expect(machine.bytes(event, 16) == [3, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0x2a, 9, 0, 0])
        machine.vm.stop()
        let state = savedState(device)
        try loadState(state, into: device)
        #expect(savedState(device) == state)
        try machine.vm.start()
        #expect(try command([0, 0, 0, 0, 0, 0]).sense == Result.failed(6, 0x2a, 9))
        #expect(try command([0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], room: 8).data == big(UInt32(4095)) + big(UInt32(512)))
        #expect(driver.queues[1].reap().isEmpty)
    }

    /// Buffers for events, one behind the other.
    private func offerEvents(_ count: Int) {
        for index in 0..<count {
            let place = Self.data + 0x8000 + UInt64(16 * index)
            driver.queues[1].submit([.init(address: place, length: 16, writable: true)])
        }
    }

    @Test("disks that come and go are told by events, and what is in hand of others goes on")
    func comingAndGoing() throws {
        let device = try start(["scsi-hd,drive=d0,id=a", "scsi-hd,drive=d1,id=b"], held: true)
        func plug(_ text: String) throws {
            try factory.plug { () throws(VMMError) in try factory.add(KeyValueOptions(text, impliedKey: "driver")) }
        }
        try plug("scsi-hd,drive=d2,id=c")
        #expect(factory.device("c")?.settled.map { "\($0)=\($1)" } == ["bus=s.0", "scsi-id=2", "lun=0"])
        // A request of the second disk is in hand while the first goes.
        submit([0x28, 0, 0, 0, 0, 7, 0, 0, 2, 0], target: 1, room: 1024, kick: false)
        driver.queues[2].ring()
        try #require(engine.held.count == 1)
        let file = engine.held[0].pointee.fd
        engine.end(0, error: 125)
        let first = try #require(factory.device("a"))
        #expect(first.bus === device && first.isHotPluggable)
        factory.unplug(first)
        // It is begun again, at the place that its disk has now.
        #expect(machine.wait { engine.held.count == 1 })
        #expect(engine.held[0].pointee.fd == file && engine.held[0].pointee.offset == 7 * 512)
        engine.end(0)
        #expect(machine.wait { driver.queues[2].usedIndex == 1 })
        #expect(result().status == 0 && result().response == 0)
        _ = driver.queues[2].reap()
        #expect(try command([0x12, 0, 0, 0, 36, 0], target: 0, room: 36).response == 3)
        #expect(machine.vm.blockBackend("d0")?.user == nil)

        // Nothing is told twice, nor forgotten over an update.
        machine.vm.stop()
        let state = savedState(device)
        try loadState(state, into: device)
        #expect(savedState(device) == state)
        try machine.vm.start()
        offerEvents(3)
        #expect(driver.queues[1].reap().map(\.length) == [16, 16])
        #expect(machine.bytes(Self.data + 0x8000, 16) == [1, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0])
        #expect(machine.bytes(Self.data + 0x8010, 16) == [1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0])
    }

    @Test("a file that somebody has made shorter does not change the size of its disk")
    func shortened() throws {
        let device = try start()
        machine.vm.stop()
        let state = savedState(device)
        #expect(truncate(directory.file("disk0"), 512) == 0)
        try loadState(state, into: device)
        #expect(savedState(device) == state)
        try machine.vm.start()
        #expect(try command([0, 0, 0, 0, 0, 0]) == .good)
        let capacity = try command([0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], room: 8)
        #expect(capacity.data == big(UInt32(Self.size / 512 - 1)) + big(UInt32(512)))
    }

    @Test("whatever a driver sends is answered, or the device asks to be reset")
    func hostile() throws {
        let device = try start([
            "scsi-hd,drive=d0,scsi-id=0", "scsi-cd,drive=d1,scsi-id=1", "scsi-hd,drive=d2,scsi-id=2",
        ])
        var random = Randomness(seed: 5)
        let operations: [UInt8] = [
            0, 3, 8, 0x0a, 0x12, 0x1a, 0x1b, 0x1e, 0x25, 0x28, 0x2a, 0x2f, 0x35, 0x41, 0x42, 0x43, 0x46, 0x4a, 0x51,
            0x5a, 0x88, 0x8a, 0x8f, 0x91, 0x93, 0x9e, 0xa0, 0xa8, 0xaa,
        ]
        var served = 0
        for round in 0..<4000 {
            var cdb = (0..<32).map { _ in UInt8.random(in: 0...255, using: &random) }
            if round % 4 != 0 { cdb = cdb.map { $0 & 0x11 } }
            cdb[0] = operations[Int.random(in: 0..<operations.count, using: &random)]
            let out = Int.random(in: 0..<3, using: &random) * Int.random(in: 0..<600, using: &random)
            submit(
                cdb, target: UInt8.random(in: 0..<4, using: &random), lun: UInt16.random(in: 0..<2, using: &random),
                out: [UInt8](repeating: 0, count: out), room: Int.random(in: 0..<1200, using: &random))
            served += driver.queues[2].reap().count
            #expect(result().status != 0xee)
        }
        #expect(served == 4000 && !driver.needsReset)
        // Chains that are no requests, on every queue.
        for queue in 0..<3 {
            driver.start(features: driver.deviceFeatures & ~(1 << 29), queues: 3, size: 16)
            if queue == 1 { try #require(machine.vm.blockBackend("d0")).resize(to: 2 << 20) }
            driver.queues[queue].submit([.init(address: Self.data, length: 12, writable: true)])
            #expect(driver.needsReset)
            driver.write(0x70, 0)
        }
        driver.start(features: driver.deviceFeatures & ~(1 << 29), queues: 3, size: 16)
        #expect(try command([0x12, 0, 0, 0, 36, 0], room: 36).status == 0 && !device.isBusy)
    }

    @Test("a state with other disks is refused")
    func otherDisks() throws {
        let device = try start(["scsi-hd,drive=d0", "scsi-hd,drive=d1"])
        machine.vm.stop()
        let other = VirtioSCSI(vm: machine.vm)
        let error = #expect(throws: VMMError.self) { try loadState(savedState(device), into: other) }
        #expect(error?.message.contains("is of other disks: those that it had are 0:0, 1:0") == true)
    }
}
