import BatonRuntime
import Glibc
import TestSupport
import VirtBoard
import Virtio

/// A VM with some RAM and ROM and no harts, whose devices a test drives as a
/// guest would.
final class TestMachine {
    static let ramBase: UInt64 = 0x8000_0000
    static let ramSize = 4 << 20
    /// Memory that devices may not write.
    static let romBase: UInt64 = 0x1000

    let vm: VirtualMachine
    let ram: RAMBlock

    init() throws {
        DescriptorLimit.raise()
        vm = try VirtualMachine()
        ram = try TestMachine.block("ram", TestMachine.ramSize)
        try vm.addressSpace.map(try TestMachine.block("rom", 4096), at: TestMachine.romBase, size: 4096, readOnly: true)
        try vm.addressSpace.map(ram, at: TestMachine.ramBase, size: UInt64(TestMachine.ramSize))
    }

    static func block(_ name: String, _ size: Int) throws(VMMError) -> RAMBlock {
        let host = try Mapping.map(length: size, alignment: 4096, fd: -1, shared: false, name: name)
        return RAMBlock(
            name: name, usedLength: size, maxLength: size, alignment: 4096, host: host, fd: -1, shared: false,
            origin: "anonymous")
    }

    func store<T: FixedWidthInteger>(_ value: T, at address: UInt64) {
        ram.host.storeBytes(of: value, toByteOffset: Int(address - TestMachine.ramBase), as: T.self)
    }

    func load<T: FixedWidthInteger>(_ address: UInt64, as type: T.Type = T.self) -> T {
        ram.host.loadUnaligned(fromByteOffset: Int(address - TestMachine.ramBase), as: T.self)
    }

    func store(bytes: [UInt8], at address: UInt64) {
        for (index, byte) in bytes.enumerated() { store(byte, at: address + UInt64(index)) }
    }

    func bytes(_ address: UInt64, _ count: Int) -> [UInt8] {
        (0..<count).map { load(address + UInt64($0), as: UInt8.self) }
    }

    /// Runs the loop's handlers until `condition` holds.
    /// - Returns: false when it does not within two minutes.
    func wait(until condition: () -> Bool) -> Bool {
        let deadline = EventLoop.now + 120_000_000_000
        while !condition() {
            guard EventLoop.now < deadline else { return false }
            vm.loop.poll(timeout: 10_000_000)
        }
        return true
    }
}

/// A level that a test looks at.
final class Wire {
    private(set) var level = false
    private(set) var rises = 0
    var line: InterruptLine {
        InterruptLine { [self] level in
            self.level = level
            if level { rises += 1 }
        }
    }
}

/// The state of a device as it goes into a checkpoint.
func savedState(_ device: any Device) -> [UInt8] {
    var writer = StateWriter()
    device.save(to: &writer)
    return writer.encoded()
}

func loadState(_ state: [UInt8], into device: any Device) throws {
    try device.load(from: StateReader(section: device.stateName, version: device.stateVersion, payload: state[...]))
}

/// A small generator with a fixed sequence, for fuzzing (SplitMix64).
struct Randomness: RandomNumberGenerator {
    private var state: UInt64
    init(seed: UInt64) { state = seed }
    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var z = state
        z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
        z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
        return z ^ (z >> 31)
    }
}
