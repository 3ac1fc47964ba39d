import BatonRuntime
@_exported import DeviceTestSupport
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

    /// Another VM, with the same RAM: what a process that takes over has.
    init(sharing other: TestMachine) throws {
        vm = try VirtualMachine()
        ram = other.ram
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

    /// As `VirtualMachine.wait`.
    func wait(until condition: () -> Bool) -> Bool { vm.wait(until: condition) }
}
