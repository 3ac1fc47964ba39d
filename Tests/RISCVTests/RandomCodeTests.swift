import BatonRuntime
import RISCV
import Testing

/// A device that answers anything: random code finds it sooner or later.
private final class AnyRegister: MMIODevice {
    func mmioRead(offset: UInt64, width: Int) -> UInt64 { offset &* 0x9e37_79b9_7f4a_7c15 }
    func mmioWrite(offset: UInt64, width: Int, value: UInt64) {}
}

/// Whatever a guest executes, the VMM goes on.
@Suite("Random code")
struct RandomCodeTests {
    private struct Generator: RandomNumberGenerator {
        var state: UInt64
        mutating func next() -> UInt64 {
            state &+= 0x9e37_79b9_7f4a_7c15
            var value = state
            value = (value ^ (value >> 30)) &* 0xbf58_476d_1ce4_e5b9
            value = (value ^ (value >> 27)) &* 0x94d0_49bb_1331_11eb
            return value ^ (value >> 31)
        }
    }

    /// A word that is likely to be an instruction of a rarely tried kind.
    private func word(_ random: inout Generator) -> UInt32 {
        let any = UInt32(truncatingIfNeeded: random.next())
        let registers = any & 0x01f0_8f80
        switch random.next() % 12 {
        case 0: return any
        // CSR instructions, on numbers that mostly exist.
        case 1, 2:
            let numbers: [UInt32] = [
                0x001, 0x002, 0x003, 0x100, 0x104, 0x105, 0x106, 0x140, 0x141, 0x142, 0x143, 0x144, 0x14d, 0x180,
                0x300, 0x302, 0x303, 0x304, 0x305, 0x306, 0x30a, 0x320, 0x341, 0x344, 0x3a0, 0x3a2, 0x3b0, 0x3b1,
                0x3bf, 0xb00, 0xb02, 0xc00, 0xc01, 0xc02, 0x7a0, 0xf14,
            ]
            return numbers[Int(any >> 8) % numbers.count] << 20 | any & 0x000f_ff80 | (any & 0x7000) | 0x73
        case 3: return [0x3020_0073, 0x1020_0073, 0x1200_0073, 0x0000_0073, 0x0010_0073, 0x0000_100f][Int(any % 6)]
        case 4: return any & 0xffff_8f80 | 0x2f | (any & 0x1000) | 0x2000
        case 5: return any & 0xffff_ff80 | 0x53
        case 6: return any & 0xfdff_ff80 | 0x43 | (any & 0xc)
        case 7: return any & 0xffff_ff80 | 0x03
        case 8: return any & 0xffff_ff80 | 0x23
        case 9: return any & 0x0fff_ff80 | 0x63
        case 10: return registers | any & 0xfe00_7000 | 0x33 | (any & 8)
        default: return any & 0xffff_ff80 | 0x13 | (any & 8)
        }
    }

    @Test("does not end the VMM", arguments: 1...24)
    func survives(_ seed: Int) throws {
        var random = Generator(state: UInt64(seed))
        let machine = try TestMachine(harts: seed % 3 == 0 ? 2 : 1, megabytes: 2, sbi: seed % 4 == 1)
        try machine.vm.addressSpace.map(AnyRegister(), at: 0x1000_0000, size: 0x1000, name: "any")
        let rom = try Self.rom(in: machine)
        let spare = try TestMachine(harts: machine.accelerator.harts.count, megabytes: 2, sbi: seed % 4 == 1)
        for round in 0..<40 {
            machine.reset()
            for offset in stride(from: 0, to: 64 << 10, by: 4) {
                machine.ram.host.storeBytes(of: word(&random), toByteOffset: offset, as: UInt32.self)
            }
            machine.vm.addressSpace.didWrite(TestMachine.base, length: 64 << 10)
            // Registers point into RAM, at the device, near the ends of the
            // address space, or nowhere.
            var payload = try state(of: machine.hart)
            for index in 1..<32 {
                let any = random.next()
                let bases: [UInt64] = [
                    TestMachine.base, TestMachine.base + 0x1f_fff8, 0x1000_0000, Self.romBase, 0, UInt64.max - 64,
                    1 << 38, any,
                ]
                payload.x[index] = bases[Int(any >> 32) % bases.count] &+ (any & 0x3f)
            }
            payload.mtvec = TestMachine.base + 0x400
            payload.stvec = TestMachine.base + 0x800
            payload.satp = round % 3 == 0 ? 8 << 60 | UInt64(0x80000 + round) : 0
            payload.mode = round % 2 == 0 ? 3 : 1
            try load(payload, into: machine.hart)
            for _ in 0..<6 { _ = machine.accelerator.runSlice() }
            // Wherever the code has led a hart, its state goes through a checkpoint.
            for (hart, other) in zip(machine.accelerator.harts, spare.accelerator.harts) {
                hart.pause()
                let state = saved(hart)
                try other.load(from: StateReader(section: hart.stateName, version: 1, payload: state[...]))
                #expect(saved(other) == state, "\(hart.stateName) after round \(round)")
                hart.resume()
            }
        }
        for index in 0..<rom.usedLength / 8 {
            #expect(rom.host.load(fromByteOffset: index * 8, as: UInt64.self) == Self.romWord, "doubleword \(index)")
        }
        try expectObedience(machine)
    }

    // MARK: What must hold afterwards

    private static let romBase: UInt64 = 0x1000
    private static let romWord: UInt64 = 0x5bad_c0de_5bad_c0de

    /// Memory that no code may write, in a place that registers point to.
    private static func rom(in machine: TestMachine) throws -> RAMBlock {
        let host = try Mapping.map(length: 4096, alignment: 4096, fd: -1, shared: false, name: "rom")
        for index in 0..<512 { host.storeBytes(of: romWord, toByteOffset: index * 8, as: UInt64.self) }
        let rom = RAMBlock(
            name: "rom", usedLength: 4096, maxLength: 4096, alignment: 4096, host: host, fd: -1, shared: false,
            origin: "anonymous")
        try machine.vm.addressSpace.map(rom, at: romBase, size: 4096, readOnly: true)
        return rom
    }

    private func saved(_ hart: Hart) -> [UInt8] {
        var writer = StateWriter()
        hart.save(to: &writer)
        return writer.encoded()
    }

    /// After a reset the machine does what a program says.
    private func expectObedience(_ machine: TestMachine) throws {
        machine.reset()
        // auipc t0, 0x100; li t1, 0x5a; sd t1, (t0); j .
        let program: [UInt32] = [0x0010_0297, 0x05a0_0313, 0x0062_b023, 0x0000_006f]
        for (index, word) in program.enumerated() {
            machine.ram.host.storeBytes(of: word, toByteOffset: index * 4, as: UInt32.self)
        }
        machine.vm.addressSpace.didWrite(TestMachine.base, length: 16)
        machine[TestMachine.done] = 0
        try machine.run(until: "the program's store", seconds: 30) { machine[TestMachine.done] == 0x5a }
    }

    // MARK: Setting up a hart through its checkpoint

    private struct Values {
        var reader: StateReader
        var x: [UInt64]
        var mtvec: UInt64 = 0
        var stvec: UInt64 = 0
        var satp: UInt64 = 0
        var mode: UInt64 = 3
    }

    private func state(of hart: Hart) throws -> Values {
        var writer = StateWriter()
        hart.save(to: &writer)
        let reader = try StateReader(section: hart.stateName, version: 1, payload: writer.encoded()[...])
        return Values(reader: reader, x: try reader.array("x", count: 32...32))
    }

    private func load(_ values: Values, into hart: Hart) throws {
        var payload: [UInt8] = []
        for entry in values.reader.dump {
            let bytes: [UInt8] =
                switch entry.name {
                case "x": values.x.flatMap { littleEndianBytes($0) }
                case "mtvec": littleEndianBytes(values.mtvec)
                case "stvec": littleEndianBytes(values.stvec)
                case "satp": littleEndianBytes(values.satp)
                case "mode": littleEndianBytes(values.mode)
                default: Array(entry.payload)
                }
            payload.append(UInt8(entry.name.utf8.count))
            payload += entry.name.utf8
            payload += [entry.type.rawValue, 0]
            payload += littleEndianBytes(UInt32(bytes.count))
            payload += bytes
        }
        try hart.load(from: StateReader(section: hart.stateName, version: 1, payload: payload[...]))
    }
}
