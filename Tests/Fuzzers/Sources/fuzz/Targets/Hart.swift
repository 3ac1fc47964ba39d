import BatonRuntime
import Glibc
@testable import RISCV

/// Any code, on a hart that keeps what it has decoded and runs long slices, and on one that begins a slice at each place
/// where it can, with nothing decoded: both come to the same registers and memory.
extension Target {
    static let hart = Target(
        name: "hart", longestInput: 1024, startsLong: true,
        seeds: {
            func code(_ words: [UInt32]) -> [UInt8] {
                [3, 0] + [UInt8](repeating: 1, count: 31) + words.flatMap { little($0) }
            }
            return [
                // addi, add, ld, sd, beq back; csrrw; ecall; lr, sc; fadd.d; fence.i and a jump.
                code([0x0010_0093, 0x0010_8133, 0x0002_3183, 0x0032_3023, 0xfe00_08e3]),
                code([0x3400_9173, 0x0000_0073, 0x3020_0073, 0x1050_0073]),
                code([0x1002_a1af, 0x1832_a22f, 0x0221_80d3, 0x0000_100f, 0x0000_006f]),
                code([0x0001_4505, 0x8082_0505, 0x02c5_8533, 0x02c5_d533, 0x4105_5513]),
            ]
        },
        make: {
            let (one, other) = (try HartMachine(), try HartMachine())
            return { bytes in
                for machine in [one, other] { machine.setUp(Input(bytes)) }
                var left: Int64 = 3000
                while left > 0 {
                    let used = one.hart.run(min(left, 400))
                    left -= max(1, used)
                    other.follow(one)
                    if used == 0 { break }
                }
                for machine in [one, other] { machine.hart.pause() }
                let (a, b) = (savedState(one.hart), savedState(other.hart))
                if a != b { found("registers differ: \(HartMachine.difference(a, b))") }
                expect(memcmp(one.ram.host, other.ram.host, one.ram.usedLength) == 0, "memory differs")
                do throws(VMMError) { try loadState(a, into: other.hart) } catch {
                    found("a hart refuses its own state: \(error.message)")
                }
                expect(savedState(other.hart) == a, "a hart is another after its state was loaded")
            }
        })
}

private final class HartMachine {
    static let base: UInt64 = 0x8000_0000
    private static let size = 128 << 10

    /// Answers anything, always the same.
    private final class AnyRegister: MMIODevice {
        func mmioRead(offset: UInt64, width: Int) -> UInt64 { offset &* 0x9e37_79b9_7f4a_7c15 }
        func mmioWrite(offset: UInt64, width: Int, value: UInt64) {}
    }

    let vm: VirtualMachine
    let accelerator: SoftwareAccelerator
    let ram: RAMBlock
    var hart: Hart { accelerator.harts[0] }

    /// Whether nothing decoded outlives a slice; else it is only slices that are shorter than another's.
    private var forgets = true

    init() throws {
        vm = try VirtualMachine()
        // Time stands still.
        vm.clock.stopsWithVM = true
        vm.clock.restore(now: 1_000_000, wallClock: 0, passed: 0)
        accelerator = try SoftwareAccelerator(vm: vm, hartCount: 1)
        try vm.setAccelerator(accelerator)
        ram = try makeRAM("ram", HartMachine.size)
        try vm.addressSpace.map(ram, at: HartMachine.base, size: UInt64(HartMachine.size))
        try vm.addressSpace.map(AnyRegister(), at: 0x1000_0000, size: 0x1000, name: "any")
        for hart in accelerator.harts { try vm.add(hart) }
    }

    func setUp(_ start: Input) {
        var input = start
        madvise(ram.host, HartMachine.size, MADV_DONTNEED)
        let mode = input.byte()
        let paging = input.byte()
        forgets = paging & 2 == 0
        hart.setResetVector(
            pc: HartMachine.base, a0: 0, a1: 0, mode: mode & 1 == 0 ? .supervisor : .machine)
        hart.reset()
        let bases: [UInt64] = [
            HartMachine.base + 0x4000, HartMachine.base, HartMachine.base + UInt64(HartMachine.size) - 8, 0x1000_0000,
            0, UInt64.max - 64, 1 << 38, 1, 0x7ff0_0000_0000_0000, 0xffff_ffff_7fc0_0000,
        ]
        let state = hart.state
        for index in 1..<32 {
            let any = input.byte()
            state.x[index] = bases[Int(any) % bases.count] &+ UInt64(any / 10) * 8
            state.f[index] = bases[(Int(any) + 3) % bases.count]
        }
        state.pointee.mtvec = HartMachine.base + 0x400
        state.pointee.stvec = HartMachine.base + 0x800
        if mode & 2 != 0 { state.pointee.mstatus |= MStatus.fs }
        // One page of code is the root of the tables, too: superpages of anything.
        if paging & 1 != 0, mode & 1 == 0 {
            state.pointee.satp = 8 << 60 | HartMachine.base >> 12 + 8
            for index in 0..<512 {
                let entry: UInt64 = index == 2 ? (HartMachine.base >> 12) << 10 | 0xcf : 0
                ram.host.storeBytes(of: entry, toByteOffset: 0x8000 + index * 8, as: UInt64.self)
            }
        }
        let code = input.rest()
        for (index, byte) in code.prefix(0x1000).enumerated() {
            ram.host.storeBytes(of: byte, toByteOffset: index, as: UInt8.self)
        }
        state.pointee.cache.pointee.flush()
        state.updateFloatFast()
        state.updatePMP()
        state.setMode(state.pointee.mode)
        hart.updateTimers()
    }

    /// Runs up to where another hart is, which has the same code.
    func follow(_ leader: HartMachine) {
        let goal = leader.hart.retiredInstructions
        // Traps retire nothing, and an endless row of them changes nothing any more.
        var idle = 0
        while !isLike(leader) {
            if forgets { forget() }
            let retired = hart.retiredInstructions
            let used = step()
            idle = hart.retiredInstructions == retired ? idle + 1 : 0
            guard used > 0, hart.retiredInstructions <= goal, idle < 2000 else {
                found(
                    "two harts part: at \(Hex(hart.programCounter)) after \(hart.retiredInstructions) instructions, at "
                        + "\(Hex(leader.hart.programCounter)) after \(goal): "
                        + HartMachine.difference(savedState(leader.hart), savedState(hart)))
            }
        }
    }

    private func isLike(_ leader: HartMachine) -> Bool {
        let (a, b) = (hart.state.pointee, leader.hart.state.pointee)
        guard a.retired == b.retired, a.pc == b.pc, a.mode == b.mode, a.mstatus == b.mstatus, a.waiting == b.waiting,
            a.mepc == b.mepc, a.mcause == b.mcause, a.mtval == b.mtval, a.sepc == b.sepc, a.scause == b.scause,
            a.stval == b.stval
        else { return false }
        return (0..<32).allSatisfy { hart.state.x[$0] == leader.hart.state.x[$0] }
    }

    /// Drops all that was decoded and translated.
    func forget() {
        hart.state.pointee.cache.pointee.flush()
        hart.state.flushTLB()
    }

    /// Runs the shortest slice. A reservation lasts, as it does in a long one.
    /// - Returns: what was used of it.
    func step() -> Int64 {
        let state = hart.state
        if state.pointee.waiting {
            guard hart.hasWakeUp else { return 0 }
            return hart.run(1)
        }
        state.takeInterrupt()
        state.pointee.retiredAtEnd &+= 1
        state.pointee.budget = 1
        state.pointee.withheld = 0
        interpret(state)
        return 1 - state.pointee.withheld
    }

    static func difference(_ a: [UInt8], _ b: [UInt8]) -> String {
        zip(EditableState(a).fields, EditableState(b).fields).filter { $0.payload != $1.payload }.map {
            let places = zip($0.payload, $1.payload).enumerated().filter { $1.0 != $1.1 }.map(\.offset)
            return "\(String(decoding: $0.name, as: UTF8.self)) at bytes \(places.prefix(8))"
        }.joined(separator: ", ")
    }
}
