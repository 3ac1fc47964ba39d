import BatonRuntime
import Glibc
import PCI
import Testing

/// A host bridge with small windows, driven as a guest would.
final class PCITestBus {
    static let ecam: UInt64 = 0x3000_0000
    static let window: UInt64 = 0x4000_0000
    static let windowSize: UInt64 = 0x10_0000
    static let high: UInt64 = 0x4_0000_0000
    static let ioBase: UInt64 = 0x300_0000
    /// A register that takes messages.
    static let doorbell: UInt64 = 0x2800_0000

    let machine: TestMachine
    let wires = (0..<4).map { _ in Wire() }
    let host: ECAMHostBridge
    let messages = MessageSink()
    var space: AddressSpace { machine.vm.addressSpace }

    init(_ given: TestMachine? = nil) throws {
        machine = try given ?? TestMachine()
        host = try ECAMHostBridge(
            vm: machine.vm,
            windows: [
                PCIWindow(name: "io", isIO: true, start: Self.ioBase, busStart: 0, size: 0x1_0000),
                PCIWindow(name: "low", isIO: false, start: Self.window, busStart: Self.window, size: Self.windowSize),
                PCIWindow(name: "high", isIO: false, start: Self.high, busStart: Self.high, size: 1 << 30),
            ], lines: wires.map(\.line))
        try host.mapIntoAddressSpace(configurationAt: Self.ecam)
        try machine.vm.addressSpace.map(messages, at: Self.doorbell, size: 0x1000, name: "doorbell")
    }

    func plug(_ function: PCIFunction, _ slot: Int, _ number: Int = 0) throws {
        try host.bus.plug(function, at: PCISlot(device: slot, function: number))
    }

    private func address(_ slot: Int, _ register: Int) -> UInt64 {
        Self.ecam + UInt64(slot) << 15 + UInt64(register)
    }

    func read(_ slot: Int, _ register: Int, _ width: Int = 4) -> UInt64 {
        space.mmioRead(address(slot, register), width: width) ?? 0xdead
    }

    func write(_ slot: Int, _ register: Int, _ value: UInt64, _ width: Int = 4) {
        #expect(space.mmioWrite(address(slot, register), width: width, value: value))
    }

    /// Memory, I/O and bus mastering on.
    func enable(_ slot: Int) { write(slot, 4, 7, 2) }
}

/// Takes messages, as an IMSIC does.
final class MessageSink: MMIODevice {
    private(set) var received: [UInt64] = []
    /// What a message does besides.
    var effect: (() -> Void)?

    func mmioRead(offset: UInt64, width: Int) -> UInt64 { 0 }
    func mmioWrite(offset: UInt64, width: Int, value: UInt64) {
        received.append(offset << 32 | value)
        effect?()
    }
    func take() -> [UInt64] {
        defer { received = [] }
        return received
    }
}

/// Registers that remember what was written.
final class Registers: MMIODevice {
    private(set) var writes: [(UInt64, UInt64)] = []
    func mmioRead(offset: UInt64, width: Int) -> UInt64 { offset }
    func mmioWrite(offset: UInt64, width: Int, value: UInt64) { writes.append((offset, value)) }
}

/// A function with every kind of BAR, MSI and MSI-X.
final class ProbeFunction: PCIFunction {
    let registers = Registers()
    let memory: UnsafeMutableRawPointer
    let low = PCIBar(index: 0, space: .memory32, size: 0x4000)
    let io = PCIBar(index: 1, space: .io, size: 64)
    let high = PCIBar(index: 2, space: .memory64, size: 0x10000, isPrefetchable: true)
    private(set) var moves: [(Int, UInt64?)] = []

    init(_ machine: TestMachine, model: String = "probe") {
        memory = UnsafeMutableRawPointer.allocate(byteCount: 0x10000, alignment: 4096)
        memory.initializeMemory(as: UInt8.self, repeating: 0, count: 0x10000)
        super.init(
            vm: machine.vm, model: model, id: nil,
            identity: PCIIdentity(vendor: 0x1234, device: 0x5678, classCode: 0x0880, revision: 3))
        low.add(registers: registers, size: 0x1000)
        io.add(registers: registers, size: 64)
        high.add(memory: memory, size: 0x10000)
        add(low)
        add(io)
        add(high)
        addMSI(vectors: 4)
        // The table hides a page of memory.
        addMSIX(vectors: 20, table: (high, 0x2000), pending: (low, 0x3000))
    }

    deinit { memory.deallocate() }

    override func barMoved(_ bar: PCIBar) { moves.append((bar.index, bar.address)) }
}
