import BatonRuntime
import Glibc
import InstructionSets
@testable import RISCV

/// Calls of a guest to the firmware that is built in, with anything in their registers, and what it is asked to run.
extension Target {
    static let sbi = Target(
        name: "sbi", longestInput: 1024, startsLong: true,
        seeds: {
            // Each extension with its first functions.
            (0..<14).map { (number: UInt8) -> [UInt8] in
                (0..<8).flatMap { (function: UInt8) -> [UInt8] in [0, number, function, 0, 1, 1, 2, 1, 4, 0, 0, 0, 0] }
            }
        },
        make: {
            let machine = try SBIMachine()
            return { bytes in machine.run(Input(bytes)) }
        })
}

private final class SBIMachine {
    private static let base: UInt64 = 0x8000_0000
    private static let size = 64 << 10

    private final class Console: SBIConsole {
        func write(_ bytes: UnsafeRawBufferPointer) {}
        func read(into buffer: UnsafeMutableRawBufferPointer) -> Int { min(1, buffer.count) }
    }

    private let vm: VirtualMachine
    private let accelerator: SoftwareAccelerator
    private let ram: RAMBlock
    private let console = Console()
    private let initial: [[UInt8]]

    init() throws {
        vm = try VirtualMachine()
        vm.clock.stopsWithVM = true
        vm.clock.restore(now: 1_000_000, wallClock: 0, passed: 0)
        accelerator = try SoftwareAccelerator(vm: vm, hartCount: 2)
        try vm.setAccelerator(accelerator)
        ram = try makeRAM("ram", SBIMachine.size)
        try vm.addressSpace.map(ram, at: SBIMachine.base, size: UInt64(SBIMachine.size))
        accelerator.enableBuiltinSBI(console: console)
        for hart in accelerator.harts {
            try vm.add(hart)
            hart.setResetVector(
                pc: SBIMachine.base, a0: UInt64(hart.index), a1: 0, mode: .supervisor)
        }
        for hart in accelerator.harts { hart.reset() }
        initial = accelerator.harts.map { savedState($0) }
    }

    func run(_ start: Input) {
        var input = start
        madvise(ram.host, SBIMachine.size, MADV_DONTNEED)
        // A row of calls, then the same again.
        for place in stride(from: 0, to: 64, by: 4) {
            ram.host.storeBytes(of: 0x0000_0073, toByteOffset: place, as: UInt32.self)
        }
        ram.host.storeBytes(of: 0xfc1f_f06f, toByteOffset: 64, as: UInt32.self)
        for hart in accelerator.harts {
            hart.reset()
            hart.state.pointee.cache.pointee.flush()
        }
        expect(accelerator.harts.map { savedState($0) } == initial, "after a reset the harts are not as they were")
        let values: [UInt64] = [
            0, 1, 2, 3, SBIMachine.base, SBIMachine.base + 0x1000, SBIMachine.base + UInt64(SBIMachine.size) - 8, 4096,
            UInt64(UInt32.max), .max, 1 << 63, 0x1_0000_0000, 16, 0xffff_0000, 0xffff, 63,
        ]
        var steps = 0
        while !input.isAtEnd, steps < 60 {
            steps += 1
            let hart = accelerator.harts[Int(input.byte() & 1)]
            let state = hart.state
            let number = input.byte()
            state.x[17] =
                number == 255
                ? input.number(UInt64.self) : BuiltinSBI.Extension.all[Int(number) % BuiltinSBI.Extension.all.count]
            state.x[16] = UInt64(input.byte())
            for register in 10..<16 {
                let choice = input.byte()
                state.x[register] =
                    choice >= 250
                    ? input.number(UInt64.self) : values[Int(choice) % values.count] &+ UInt64(choice / 16) * 8
            }
            for hart in accelerator.harts { _ = hart.run(20) }
        }
        for hart in accelerator.harts {
            hart.pause()
            let saved = savedState(hart)
            do throws(VMMError) { try loadState(saved, into: hart) } catch {
                found("a hart refuses its own state: \(error.message)")
            }
            expect(savedState(hart) == saved, "a hart is another after its state was loaded")
        }
    }
}
