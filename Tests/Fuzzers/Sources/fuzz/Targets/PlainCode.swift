import BatonRuntime
import Glibc
@testable import RISCV

/// Integer code on the hart and on a second implementation, which come to the same registers and memory.
extension Target {
    static let plainCode = Target(
        name: "hart-integer", longestInput: 1024, startsLong: true,
        seeds: {
            [
                [UInt8](0..<248) + (0..<16).flatMap { [$0, 0x85, 0x41, 0] as [UInt8] },
                [UInt8](repeating: 0xff, count: 248)
                    + (0..<64).flatMap { [$0, $0 &* 37, $0 &* 91, $0 &* 3] as [UInt8] },
            ]
        },
        make: {
            let machine = try PlainCodeMachine()
            return { bytes in machine.run(Input(bytes)) }
        })
}

private final class PlainCodeMachine {
    private static let base: UInt64 = 0x8000_0000
    private static let size = 32 << 10
    private static let codeSize = 0x1000
    /// What loads and stores are relative to.
    private static let data = base + 0x4000
    /// A jump to itself.
    private static let end = base + 0x2000

    private let vm: VirtualMachine
    private let accelerator: SoftwareAccelerator
    private let ram: RAMBlock
    private var hart: Hart { accelerator.harts[0] }

    init() throws {
        vm = try VirtualMachine()
        accelerator = try SoftwareAccelerator(vm: vm, hartCount: 1)
        try vm.setAccelerator(accelerator)
        ram = try makeRAM("ram", PlainCodeMachine.size)
        try vm.addressSpace.map(ram, at: PlainCodeMachine.base, size: UInt64(PlainCodeMachine.size))
        try vm.add(hart)
        hart.setResetVector(pc: PlainCodeMachine.base, a0: 0, a1: 0, mode: .machine)
    }

    /// Any word as an instruction that is likely to be one: x2 stays where data is.
    private static func instruction(_ any: UInt32) -> UInt32 {
        let opcodes: [UInt32] = [
            0x33, 0x3b, 0x13, 0x1b, 0x03, 0x23, 0x63, 0x33, 0x3b, 0x13, 0x03, 0x23, 0x37, 0x17, 0x6f, 0x67,
        ]
        let opcode = opcodes[Int(any & 15)]
        var word = any & ~0x7f | opcode
        if opcode == 0x03 || opcode == 0x23 { word = word & ~0xf_8000 | 2 << 15 }
        if opcode != 0x23, opcode != 0x63, word >> 7 & 31 == 2 { word |= 1 << 7 }
        switch opcode {
        case 0x33, 0x3b:
            let functions: [UInt32] = [0, 0x20, 1, 1]
            word = word & 0x01ff_ffff | functions[Int(any >> 25 & 3)] << 25
        // Shifts.
        case 0x13 where word >> 12 & 3 == 1: word &= word >> 14 & 1 == 0 ? 0x03ff_ffff : 0x43ff_ffff
        case 0x1b where word >> 12 & 3 == 1: word &= word >> 14 & 1 == 0 ? 0x01ff_ffff : 0x41ff_ffff
        // Near, and to whole words.
        case 0x63:
            let high: UInt32 = 0x7e00_0000 | 1 << 7
            word = (word >> 31 == 1 ? word | high : word & ~high) & ~(1 << 8)
        case 0x6f: word &= 0x00c0_0fff
        default: break
        }
        return word
    }

    func run(_ start: Input) {
        var input = start
        madvise(ram.host, PlainCodeMachine.size, MADV_DONTNEED)
        hart.reset()
        let state = hart.state
        for index in 1..<32 { state.x[index] = input.number(UInt64.self) }
        state.x[2] = PlainCodeMachine.data
        state.pointee.mtvec = PlainCodeMachine.end
        var place = 0
        while !input.isAtEnd, place < PlainCodeMachine.codeSize {
            let word = PlainCodeMachine.instruction(input.number(UInt32.self))
            ram.host.storeBytes(of: word, toByteOffset: place, as: UInt32.self)
            place += 4
        }
        ram.host.storeBytes(of: 0x0000_006f, toByteOffset: 0x2000, as: UInt32.self)
        let memory = Array(UnsafeRawBufferPointer(start: ram.host, count: PlainCodeMachine.size))
        let code = PlainCodeMachine.base..<PlainCodeMachine.base + UInt64(PlainCodeMachine.codeSize)
        var plain = PlainHart(pc: PlainCodeMachine.base, base: PlainCodeMachine.base, memory: memory, code: code)
        for index in 1..<32 { plain.x[index] = state.x[index] }
        var seen: Set<UInt64> = []
        var steps = 0
        while steps < 2000 {
            let place = plain.pc
            // Ends at the first instruction that was not carried out before.
            if steps >= 500, !seen.contains(place) { break }
            guard plain.step() else { break }
            seen.insert(place)
            steps += 1
        }
        guard !seen.contains(plain.pc) else { return }
        // There the hart is to end, too.
        let stop = Int(plain.pc - PlainCodeMachine.base)
        ram.host.storeBytes(of: 0x0010_0073, toByteOffset: stop, as: UInt32.self)
        plain.memory.store(little: 0x0010_0073 as UInt32, at: stop)
        state.pointee.cache.pointee.flush()
        var turns = 0
        while state.pointee.pc != PlainCodeMachine.end, turns < 100 {
            _ = hart.run(1000)
            turns += 1
        }
        expect(
            state.pointee.mcause == 3 && state.pointee.mepc == plain.pc,
            "the hart ended at \(Hex(state.pointee.mepc)) by \(state.pointee.mcause), another at \(Hex(plain.pc))")
        for index in 0..<32 {
            expect(
                state.x[index] == plain.x[index],
                "x\(index) is \(Hex(state.x[index])), with another implementation \(Hex(plain.x[index]))")
        }
        let isSame = plain.memory.withUnsafeBytes {
            $0.elementsEqual(UnsafeRawBufferPointer(start: ram.host, count: PlainCodeMachine.size))
        }
        expect(isSame, "memory differs from that of another implementation")
    }
}
