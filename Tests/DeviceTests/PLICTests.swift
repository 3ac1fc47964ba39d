import BatonRuntime
import Testing
import VirtBoard

@Suite struct PLICTests {
    final class Outputs { var levels: [Bool] = [false, false] }
    let outputs = Outputs()
    let plic: PLIC
    let line: InterruptLine
    let other: InterruptLine

    init() {
        let outputs = outputs
        plic = PLIC(contextCount: 2) { outputs.levels[$0] = $1 }
        line = plic.line(10)
        other = plic.line(40)
    }

    private func read(_ offset: UInt64) -> UInt64 { plic.mmioRead(offset: offset, width: 4) }
    private func write(_ offset: UInt64, _ value: UInt64) { plic.mmioWrite(offset: offset, width: 4, value: value) }
    private static let claimS: UInt64 = 0x20_1004

    /// Enables both sources for context 1.
    private func enable() {
        write(10 * 4, 1)
        write(40 * 4, 2)
        write(0x2080, 1 << 10)
        write(0x2084, 1 << 8)
    }

    @Test func claimsAndCompletes() {
        enable()
        #expect(!outputs.levels[1])
        line.set(true)
        #expect(outputs.levels == [false, true])
        #expect(read(0x1000) == 1 << 10)
        #expect(read(Self.claimS) == 10)
        #expect(!outputs.levels[1] && read(0x1000) == 0)
        #expect(read(Self.claimS) == 0)
        // Still high: comes again after completion, not before.
        line.set(false)
        line.set(true)
        #expect(!outputs.levels[1])
        write(Self.claimS, 10)
        #expect(outputs.levels[1])
        #expect(read(Self.claimS) == 10)
        line.set(false)
        write(Self.claimS, 10)
        #expect(!outputs.levels[1])
    }

    @Test func thePendingRequestOutlivesItsLevel() {
        enable()
        line.set(true)
        line.set(false)
        #expect(outputs.levels[1])
        #expect(read(Self.claimS) == 10)
        write(Self.claimS, 10)
        #expect(!outputs.levels[1])
    }

    @Test func theHighestPriorityComesFirstAndThenTheLowestNumber() {
        enable()
        line.set(true)
        other.set(true)
        #expect(read(Self.claimS) == 40)
        #expect(read(Self.claimS) == 10)
        write(Self.claimS, 10)
        write(Self.claimS, 40)
        write(10 * 4, 2)
        #expect(read(Self.claimS) == 10)
    }

    @Test func theThresholdMasksTheInterruptButNotTheClaim() {
        enable()
        line.set(true)
        write(0x20_1000, 1)
        #expect(!outputs.levels[1])
        #expect(read(Self.claimS) == 10)
        write(Self.claimS, 10)
        write(0x20_1000, 0)
        #expect(outputs.levels[1])
    }

    @Test func priorityZeroNeverInterrupts() {
        enable()
        write(10 * 4, 0)
        line.set(true)
        #expect(!outputs.levels[1] && read(Self.claimS) == 0)
    }

    @Test func completionsOfWhatIsNotEnabledAreIgnored() {
        enable()
        line.set(true)
        _ = read(Self.claimS)
        write(0x20_0004, 10)
        write(Self.claimS, 0)
        write(Self.claimS, 96)
        write(Self.claimS, 0xffff_ffff)
        #expect(!outputs.levels[1])
        write(Self.claimS, 10)
        #expect(outputs.levels[1])
    }

    @Test func registersKeepOnlyTheBitsThatExist() {
        write(4, 0xffff_ffff)
        #expect(read(4) == 7)
        write(0, 7)
        #expect(read(0) == 0)
        write(96 * 4, 7)
        #expect(read(96 * 4) == 0)
        write(0x2000, 0xffff_ffff)
        #expect(read(0x2000) == 0xffff_fffe)
        write(0x200c, 1)
        #expect(read(0x200c) == 0)
        write(0x20_0000, 0xff)
        #expect(read(0x20_0000) == 7)
        write(0x20_2000, 1)
        #expect(read(0x20_2000) == 0)
        #expect([1, 2, 4, 8].filter { plic.accepts(offset: 8, width: $0) } == [4])
    }

    @Test func theSameStateComesBackFromACheckpoint() throws {
        enable()
        line.set(true)
        other.set(true)
        _ = read(Self.claimS)
        let state = savedState(plic)
        let target = Outputs()
        let restored = PLIC(contextCount: 2) { target.levels[$0] = $1 }
        let line = restored.line(10)
        try loadState(state, into: restored)
        #expect(savedState(restored) == state)
        #expect(target.levels == [false, true])
        // The device that drives the line says so again: no second request.
        line.set(true)
        #expect(savedState(restored) == state)
    }

    @Test func refusesStatesOfOtherMachines() throws {
        let four = PLIC(contextCount: 4) { _, _ in }
        #expect(throws: VMMError.self) { try loadState(savedState(four), into: plic) }
    }
}
