import BatonRuntime
import RISCV
import TestSupport
import Testing

/// Where a debugger finds what page tables map: where the hart itself finds it.
@Suite("A debugger's view of page tables") struct DebugTranslationTests {
    private let machine: TestMachine
    private let target: any DebugTarget

    // gdb's numbers of registers.
    private static let privilege = 65
    private static let firstCSR = 66
    private static let satp = firstCSR + 0x180

    private static let root = TestMachine.base + 0x1000
    private static let middle = TestMachine.base + 0x2000
    private static let last = TestMachine.base + 0x3000
    /// Valid, readable, writable and executable.
    private static let leaf: UInt64 = 0xf

    init() throws {
        machine = try TestMachine(cpu: "max")
        target = try #require(machine.accelerator.debugTarget)
        machine.reset()
        machine[Self.root] = Self.middle >> 2 | 1
        machine[Self.root + 8] = 0x4000_0000 >> 2 | Self.leaf
        machine[Self.middle] = Self.last >> 2 | 1
        machine[Self.middle + 8] = 0x8020_0000 >> 2 | Self.leaf
        set(Self.satp, 8 << 60 | Self.root >> 12)
        set(Self.privilege, 1)
    }

    private func set(_ register: Int, _ value: UInt64) {
        #expect(target.setRegister(register, ofCPU: 0, littleEndianBytes(value)))
    }

    private func find(_ address: UInt64) -> UInt64? { target.physicalAddress(address, ofCPU: 0) }

    @Test func pagesOfEachSize() {
        machine[Self.last + 8] = 0x8012_3000 >> 2 | Self.leaf
        // 64 KiB at 0x10000, by Svnapot: each of its sixteen entries says the same.
        for page in 16..<32 as Range<UInt64> {
            machine[Self.last + page * 8] = 1 << 63 | 0x8034_8000 >> 2 | Self.leaf
        }
        #expect(find(0x1abc) == 0x8012_3abc)
        #expect(find(0x1_0abc) == 0x8034_0abc && find(0x1_fabc) == 0x8034_fabc)
        #expect(find(0x20_1abc) == 0x8020_1abc)
        #expect(find(0x4123_4567) == 0x4123_4567)
        #expect(machine[Self.last + 8] == 0x8012_3000 >> 2 | Self.leaf)
    }

    @Test func whatIsNoPage() {
        machine[Self.last + 8] = 1 << 63 | 0x8034_0000 >> 2 | Self.leaf
        machine[Self.last + 24] = 0x8034_0000 >> 2 | 5
        machine[Self.middle + 16] = 0x8020_1000 >> 2 | Self.leaf
        #expect(find(0x2000) == nil)
        // A size that Svnapot does not have, and a large page between two places.
        #expect(find(0x1000) == nil && find(0x40_0000) == nil)
        // Writable alone is reserved.
        #expect(find(0x3000) == nil && find(1 << 38) == nil && find(0x8000_0000) == nil)
        set(Self.privilege, 3)
        #expect(find(0x2000) == 0x2000)
    }
}
