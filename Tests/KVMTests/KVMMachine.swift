import BatonDevices
import BatonRuntime
import Glibc
import KVM

/// Whether this host's KVM runs a guest.
enum KVMHost {
    static let isUsable: Bool = (try? KVMAccelerator(vm: VirtualMachine())) != nil

    /// Whether threads can be moved between control groups.
    static var hasGroups: Bool { access("/sys/fs/cgroup/cpu/tasks", W_OK) == 0 }

    static func read(_ path: String) -> String {
        guard let file = fopen(path, "r") else { return "" }
        defer { fclose(file) }
        var bytes = [UInt8](repeating: 0, count: 65536)
        let count = fread(&bytes, 1, bytes.count, file)
        return String(decoding: bytes[..<count], as: UTF8.self)
    }

    static func write(_ text: String, _ path: String) -> Bool {
        guard let file = fopen(path, "w") else { return false }
        return fputs(text, file) >= 0 && fclose(file) == 0
    }
}

struct TestError: Error, CustomStringConvertible {
    let description: String
    init(_ description: String) { self.description = description }
}

/// Remembers what a guest writes to ports 0x100 to 0x10f, and counts at port 0x104.
final class TestPorts: MMIODevice {
    static let base: UInt64 = 0x100
    /// The first thousand.
    private(set) var writes: [UInt64] = []
    private(set) var count = 0
    /// Called with each value.
    var onWrite: (UInt64) -> Void = { _ in }

    /// What the next read of port 0x104 gives.
    var next: UInt64 = 0

    func mmioRead(offset: UInt64, width: Int) -> UInt64 {
        guard offset == 4 else { return 0x40 + offset }
        next += 1
        return next - 1
    }
    func mmioWrite(offset: UInt64, width: Int, value: UInt64) {
        count += 1
        if writes.count < 1000 { writes.append(value) }
        onWrite(value)
    }
}

/// A machine without a board: CPUs, RAM from 0, 64 KiB of ROM below 4 GiB, and ports.
final class KVMMachine {
    static let ramSize = 4 << 20
    static let romBase: UInt64 = 0xffff_0000

    let vm: VirtualMachine
    let accelerator: KVMAccelerator
    let ram: RAMBlock
    let rom: RAMBlock
    let ports = TestPorts()

    init(cpus: Int = 1, model: String = "host") throws {
        vm = try VirtualMachine()
        accelerator = try KVMAccelerator(vm: vm)
        try vm.setAccelerator(accelerator)
        ram = try KVMMachine.block("ram", KVMMachine.ramSize)
        rom = try KVMMachine.block("rom", 0x10000)
        try vm.addressSpace.map(ram, at: 0, size: UInt64(KVMMachine.ramSize))
        try vm.addressSpace.map(rom, at: KVMMachine.romBase, size: 0x10000, readOnly: true)
        try vm.portSpace.map(ports, at: TestPorts.base, size: 16, name: "test")
        var description = X86MachineDescription()
        description.cores = cpus
        description.model = model
        try accelerator.build(description)
        for cpu in accelerator.x86CPUs { try vm.add(cpu) }
        for device in accelerator.systemDevices { try vm.add(device) }
    }

    deinit { vm.stop() }

    private static func block(_ name: String, _ size: Int) throws -> RAMBlock {
        let host = try Mapping.map(length: size, alignment: 4096, fd: -1, shared: false, name: name)
        return RAMBlock(
            name: name, usedLength: size, maxLength: size, alignment: 4096, host: host, fd: -1, shared: false,
            origin: "anonymous")
    }

    /// A word of RAM, which the guest may change at any time.
    subscript(address: Int) -> UInt64 {
        get { ram.host.load(fromByteOffset: address, as: UInt64.self) }
        set { ram.host.storeBytes(of: newValue, toByteOffset: address, as: UInt64.self) }
    }

    func store(_ bytes: [UInt8], at address: Int) {
        ram.host.advanced(by: address).copyMemory(from: bytes, byteCount: bytes.count)
    }

    // MARK: Programs

    /// A program in real mode, at 0xffff0000, to which the reset vector jumps.
    func loadRealMode(_ code: [UInt8]) {
        rom.host.copyMemory(from: code, byteCount: code.count)
        // jmp to the beginning of the segment.
        let jump: [UInt8] = [0xe9, 0x0d, 0x00]
        rom.host.advanced(by: 0xfff0).copyMemory(from: jump, byteCount: jump.count)
    }

    static let codeAddress = 0x1000

    /// A program in long mode, with the first 4 MiB and the APICs mapped, a stack, and gates of interrupts at
    /// 0x6000, whose descriptor is at 0x7000.
    func loadLongMode(_ code: [UInt8], handlers: [Int: Int] = [:]) {
        (self[0x2000], self[0x3000], self[0x3018]) = (0x3003, 0x4003, 0x5003)
        (self[0x4000], self[0x4008]) = (0x83, 0x20_0083)
        (self[0x5000 + 8 * 0x1f6], self[0x5000 + 8 * 0x1f7]) = (0xfec0_0083, 0xfee0_0083)
        (self[0x8f10], self[0x8f18]) = (0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff)
        for (vector, address) in handlers {
            self[0x6000 + 16 * vector] = UInt64(address) & 0xffff | 0x10 << 16 | 0x8e00 << 32
        }
        store([0xff, 0x0f, 0x00, 0x60, 0, 0, 0, 0, 0, 0], at: 0x7000)
        store(code, at: KVMMachine.codeAddress)
        accelerator.x86CPUs[0].setStartState(
            X86StartState(
                mode: .long, rip: UInt64(KVMMachine.codeAddress), rsp: 0x9ff0, cr3: 0x2000, gdtBase: 0x8f00,
                gdtLimit: 0x1f))
    }

    /// Counts at 0x8000 for ever.
    static let counter: [UInt8] = [0x48, 0xff, 0x04, 0x25, 0x00, 0x80, 0x00, 0x00, 0xeb, 0xf6]

    // MARK: Running

    func run(until what: String, seconds: Double = 30, _ condition: @escaping () -> Bool) throws {
        let end = EventLoop.now + Int64(seconds * 1e9)
        // The guest stores to memory without a word to the loop.
        func look() { if !condition() { vm.loop.schedule(at: EventLoop.now + 200_000, look) } }
        look()
        vm.run(until: { condition() || EventLoop.now > end })
        guard condition() else {
            throw TestError("gave up waiting for \(what); registers:\n" + accelerator.registers(ofCPU: 0))
        }
    }

    // MARK: State

    typealias Section = (name: String, payload: [UInt8])

    /// What all devices save, in order.
    func save() -> [Section] {
        vm.devices.map { device in
            var writer = StateWriter()
            device.save(to: &writer)
            return (device.stateName, writer.encoded())
        }
    }

    func load(_ sections: [Section]) throws {
        var loaders: [() -> Void] = []
        for (device, section) in zip(vm.devices, sections) {
            let reader = try StateReader(section: section.name, version: 1, payload: section.payload[...])
            loaders.append(try device.loader(of: reader))
        }
        for apply in loaders { apply() }
        vm.tookOverState()
        if let failure = accelerator.failure { throw failure }
    }

    /// The fields of a section as bytes.
    static func fields(_ section: Section) throws -> [(name: String, type: UInt8, payload: [UInt8])] {
        try StateReader(section: section.name, version: 1, payload: section.payload[...]).dump.map {
            ($0.name, $0.type.rawValue, Array($0.payload))
        }
    }

    /// A section in which one field has another payload.
    static func changed(_ section: Section, _ field: String, _ change: (inout [UInt8]) -> Void) throws -> Section {
        var bytes: [UInt8] = []
        for (name, type, payload) in try fields(section) {
            var payload = payload
            if name == field { change(&payload) }
            bytes += [UInt8(name.utf8.count)] + Array(name.utf8) + [type, name.hasPrefix("thread-") ? 1 : 0]
            bytes += littleEndianBytes(UInt32(payload.count)) + payload
        }
        return (section.name, bytes)
    }
}
