import BatonRuntime
import Foundation
import RISCV
import TestSupport

/// A machine of harts and RAM at 0x80000000, without a board.
final class TestMachine {
    static let base: UInt64 = 0x8000_0000

    let vm: VirtualMachine
    let accelerator: SoftwareAccelerator
    let ram: RAMBlock
    var hart: Hart { accelerator.harts[0] }

    /// - Parameters:
    ///   - cpu: as for `-cpu`.
    ///   - isOriginal: has what harts had before there were choices.
    init(harts: Int = 1, megabytes: Int = 16, sbi: Bool = false, cpu: String? = nil, isOriginal: Bool = false) throws {
        DescriptorLimit.raise()
        vm = try VirtualMachine()
        var processor = try RISCVProcessor(cpu)
        if isOriginal { processor = processor.replacing(RISCVProcessor.original) }
        accelerator = try SoftwareAccelerator(vm: vm, hartCount: harts, processor: processor)
        try vm.setAccelerator(accelerator)
        let size = megabytes << 20
        let host = try Mapping.map(length: size, alignment: 4096, fd: -1, shared: false, name: "ram")
        ram = RAMBlock(
            name: "ram", usedLength: size, maxLength: size, alignment: 4096, host: host, fd: -1, shared: false,
            origin: "anonymous")
        try vm.addressSpace.map(ram, at: TestMachine.base, size: UInt64(size))
        if sbi { accelerator.enableBuiltinSBI() }
        for hart in accelerator.harts {
            try vm.add(hart)
            hart.setResetVector(
                pc: TestMachine.base, a0: UInt64(hart.index), a1: 0, mode: sbi ? .supervisor : .machine)
        }
    }

    /// Assembles a program for the start of RAM and resets the harts to it.
    convenience init(harts: Int = 1, sbi: Bool = false, cpu: String? = nil, assembly: String) throws {
        try self.init(harts: harts, sbi: sbi, cpu: cpu)
        let path = try GuestBuilder.build(
            "riscv-unit", sources: ["start.S": ".section .text.start\n.globl _start\n_start:\n" + assembly],
            march: "rv64gc_zba_zbb_zbs", binary: true)
        try load(Data(contentsOf: URL(fileURLWithPath: path)), at: TestMachine.base)
        reset()
    }

    func reset() { for hart in accelerator.harts { hart.reset() } }

    /// Copies a program to RAM, as a loader does.
    func load(_ data: Data, at address: UInt64) throws {
        let bytes = UnsafeMutableRawBufferPointer.allocate(byteCount: max(1, data.count), alignment: 16)
        defer { bytes.deallocate() }
        bytes.copyBytes(from: data)
        try vm.addressSpace.write(
            UnsafeRawBufferPointer(start: bytes.baseAddress, count: data.count), at: address, what: "test program")
    }

    /// A doubleword of RAM.
    subscript(address: UInt64) -> UInt64 {
        get { ram.host.load(fromByteOffset: Int(address - TestMachine.base), as: UInt64.self) }
        set { ram.host.storeBytes(of: newValue, toByteOffset: Int(address - TestMachine.base), as: UInt64.self) }
    }

    /// Runs slices until a condition holds.
    func run(until what: String, seconds: Double = 120, _ condition: () -> Bool) throws {
        let deadline = Deadline.seconds(seconds)
        while !condition() {
            guard !deadline.hasPassed else {
                throw TestError("gave up waiting for \(what); registers:\n" + accelerator.registers(ofCPU: 0))
            }
            _ = accelerator.runSlice()
        }
    }

    /// Runs until the program stores to `done` (0x80100000), and gives that value.
    @discardableResult
    func runUntilDone() throws -> UInt64 {
        try run(until: "the program to end") { self[TestMachine.done] != 0 }
        return self[TestMachine.done]
    }
    /// Where programs of the unit tests put their result; s11 holds it.
    static let done: UInt64 = 0x8010_0000
    /// Code that ends a program with the value of a register.
    static func finish(_ register: String) -> String {
        """

        li s11, 0x80100000
        sd \(register), (s11)
        9: j 9b

        """
    }
}
