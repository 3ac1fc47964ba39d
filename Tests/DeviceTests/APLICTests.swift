import BatonRuntime
import Testing
import VirtBoard

/// Both domains of an APLIC, with two harts.
final class APLICBench {
    var levels: [Bool] = [false, false]
    var machineLevels: [Bool] = [false, false]
    var messages: [(address: UInt64, identity: UInt32)] = []
    private(set) var root: APLIC!
    private(set) var child: APLIC!

    init(messages sends: Bool) {
        func delivery(_ set: @escaping (Int, Bool) -> Void) -> APLIC.Delivery {
            sends ? .messages { [unowned self] in messages.append(($0, $1)) } : .wires(set)
        }
        root = APLIC(name: "aplic.m", hartCount: 2, delivery: delivery { [unowned self] in machineLevels[$0] = $1 })
        child = APLIC(
            name: "aplic.s", hartCount: 2, parent: root, delivery: delivery { [unowned self] in levels[$0] = $1 })
    }

    func write(_ domain: APLIC, _ offset: UInt64, _ value: UInt64) {
        domain.mmioWrite(offset: offset, width: 4, value: value)
    }
    func read(_ domain: APLIC, _ offset: UInt64) -> UInt64 { domain.mmioRead(offset: offset, width: 4) }
    static func source(_ number: UInt64) -> UInt64 { 4 * number }
    static func target(_ number: UInt64) -> UInt64 { 0x3000 + 4 * number }

    /// Delegates a source to the child and sets it up there.
    func setUp(_ number: UInt64, mode: UInt64, target: UInt64) {
        write(root, Self.source(number), 0x400)
        write(child, Self.source(number), mode)
        write(child, Self.target(number), target)
        write(child, 0x1edc, number)
    }

    func takeMessages() -> [(address: UInt64, identity: UInt32)] {
        defer { messages = [] }
        return messages
    }
}

@Suite struct APLICWireTests {
    let bench = APLICBench(messages: false)
    let line: InterruptLine
    let other: InterruptLine
    static let claim: UInt64 = 0x401c

    init() {
        line = bench.root.line(10)
        other = bench.root.line(40)
        bench.setUp(10, mode: 6, target: 5)
        bench.setUp(40, mode: 6, target: 3)
        bench.write(bench.child, 0x4000, 1)
        bench.write(bench.child, 0, 0x100)
    }

    @Test func saysWhatItIs() {
        #expect(bench.read(bench.child, 0) == 0x8000_0100)
        #expect(bench.read(bench.root, 0) == 0x8000_0000)
        #expect(bench.read(bench.root, 40) == 0x400 && bench.read(bench.child, 40) == 6)
    }

    @Test func theLeastPriorityNumberComesFirst() {
        line.set(true)
        other.set(true)
        #expect(bench.levels == [true, false])
        #expect(bench.read(bench.child, 0x4018) == 40 << 16 | 3)
        #expect(bench.read(bench.child, Self.claim) == 40 << 16 | 3)
        // A level stays pending while its wire is up.
        #expect(bench.levels[0])
        other.set(false)
        #expect(bench.read(bench.child, Self.claim) == 10 << 16 | 5)
        line.set(false)
        #expect(!bench.levels[0] && bench.read(bench.child, Self.claim) == 0)
    }

    @Test func theThresholdHoldsBack() {
        line.set(true)
        bench.write(bench.child, 0x4008, 5)
        #expect(!bench.levels[0])
        bench.write(bench.child, 0x4008, 6)
        #expect(bench.levels[0])
        bench.write(bench.child, 0x4008, 0)
        bench.write(bench.child, 0x4000, 0)
        #expect(!bench.levels[0], "delivery off")
        bench.write(bench.child, 0x4000, 1)
        bench.write(bench.child, 0, 0)
        #expect(!bench.levels[0], "domain off")
    }

    @Test func anEdgeIsPendingUntilItIsClaimed() {
        bench.write(bench.child, APLICBench.source(10), 4)
        line.set(true)
        line.set(false)
        #expect(bench.levels[0] && bench.read(bench.child, 0x1c00) == 1 << 10)
        #expect(bench.read(bench.child, Self.claim) == 10 << 16 | 5)
        #expect(!bench.levels[0])
        line.set(true)
        bench.write(bench.child, 0x1ddc, 10)
        #expect(!bench.levels[0], "cleared by software")
        bench.write(bench.child, 0x1cdc, 10)
        #expect(bench.levels[0], "set by software")
    }

    @Test func aFallingEdgeAndALowLevelAreInverted() {
        line.set(true)
        bench.write(bench.child, APLICBench.source(10), 5)
        bench.write(bench.child, 0x1ddc, 10)
        #expect(!bench.levels[0])
        line.set(false)
        #expect(bench.levels[0])
        bench.write(bench.child, APLICBench.source(10), 7)
        #expect(bench.read(bench.child, 0x1d00) == 1 << 10)
        line.set(true)
        #expect(!bench.levels[0])
    }

    @Test func softwareCannotChangeALevel() {
        bench.write(bench.child, 0x1cdc, 10)
        #expect(!bench.levels[0])
        line.set(true)
        bench.write(bench.child, 0x1d00, 1 << 10)
        #expect(bench.levels[0])
    }

    @Test func aSourceIsTheChildsOnlyWhileItIsDelegated() {
        line.set(true)
        bench.write(bench.root, APLICBench.source(10), 6)
        #expect(!bench.levels[0] && bench.read(bench.child, 40) == 0 && bench.read(bench.child, 0x1e00) == 0)
        bench.write(bench.child, APLICBench.source(10), 6)
        #expect(bench.read(bench.child, 40) == 0)
        bench.write(bench.root, APLICBench.target(10), 1)
        bench.write(bench.root, 0x1edc, 10)
        bench.write(bench.root, 0x4000, 1)
        bench.write(bench.root, 0, 0x100)
        #expect(bench.machineLevels == [true, false])
    }

    @Test func harts() {
        bench.write(bench.child, APLICBench.target(10), 1 << 18 | 1)
        bench.write(bench.child, 0x4020, 1)
        line.set(true)
        #expect(bench.levels == [false, true])
        bench.write(bench.child, APLICBench.target(10), 0x3fff << 18)
        #expect(bench.levels == [false, false], "a hart that is not there")
        bench.write(bench.child, 0x4024, 1)
        #expect(bench.levels == [false, true], "forced")
        #expect(bench.read(bench.child, 0x403c) == 0)
        #expect(bench.levels == [false, false], "until it is claimed")
    }

    @Test func sourcesThatDoNotExistAreZero() {
        for number in [97, 500, 1023] as [UInt64] {
            bench.write(bench.root, APLICBench.source(number), 6)
            bench.write(bench.root, APLICBench.target(number), 7)
            bench.write(bench.root, 0x1edc, number)
            #expect(bench.read(bench.root, APLICBench.source(number)) == 0)
            #expect(bench.read(bench.root, APLICBench.target(number)) == 0)
        }
        bench.write(bench.root, 0x1edc, 0)
        bench.write(bench.root, 0x1e00, 1)
        #expect(bench.read(bench.root, 0x1e00) == 0)
    }

    @Test func theStateGoesToAnotherController() throws {
        line.set(true)
        bench.write(bench.child, 0x4008, 9)
        let next = APLICBench(messages: false)
        try loadState(savedState(bench.child), into: next.child)
        try loadState(savedState(bench.root), into: next.root)
        #expect(next.levels == [true, false])
        #expect(next.read(next.child, Self.claim) == 10 << 16 | 5)
        #expect(savedState(next.child) == savedState(bench.child))
        let otherKind = APLICBench(messages: true)
        #expect(throws: VMMError.self) { try loadState(savedState(bench.child), into: otherKind.child) }
    }

    @Test func randomAccessesNeverEndTheProcessAndStatesRoundTrip() throws {
        var random = Randomness(seed: 21)
        let lines = (1...96).map { bench.root.line($0) }
        for round in 0..<30_000 {
            let domain: APLIC = Bool.random(using: &random) ? bench.root : bench.child
            let bases: [UInt64] = [0, 0x1bc0, 0x1c00, 0x1d00, 0x1e00, 0x1f00, 0x2000, 0x3000, 0x4000, 0x7f00]
            let offset = (bases.randomElement(using: &random) ?? 0) + UInt64.random(in: 0..<64, using: &random) * 4
            let value = Bool.random(using: &random) ? random.next() & 0x4ff : random.next() & 0xffff_ffff
            domain.mmioWrite(offset: offset, width: 4, value: value)
            _ = domain.mmioRead(offset: offset, width: 4)
            lines.randomElement(using: &random)?.set(Bool.random(using: &random))
            guard round % 1000 == 0 else { continue }
            let state = savedState(domain)
            try loadState(state, into: domain)
            #expect(savedState(domain) == state)
        }
    }
}

@Suite struct APLICMessageTests {
    let bench = APLICBench(messages: true)
    let line: InterruptLine

    init() {
        line = bench.root.line(10)
        // Machine level at 0x24000000, supervisor level at 0x28000000; 4 bits of hart.
        bench.write(bench.root, 0x1bc0, 0x24000)
        bench.write(bench.root, 0x1bc4, 4 << 12)
        bench.write(bench.root, 0x1bc8, 0x28000)
        bench.setUp(10, mode: 6, target: 1 << 18 | 77)
        bench.write(bench.child, 0, 0x100)
    }

    @Test func aWireBecomesOneMessage() {
        #expect(bench.read(bench.child, 0) == 0x8000_0104)
        line.set(true)
        let messages = bench.takeMessages()
        #expect(messages.map(\.address) == [0x2800_1000] && messages.map(\.identity) == [77])
        #expect(bench.read(bench.child, 0x1c00) == 0)
        // As Linux asks, after it has handled a level, whether it is still up.
        bench.write(bench.child, 0x2000, 10)
        #expect(bench.takeMessages().count == 1)
        line.set(false)
        bench.write(bench.child, 0x2000, 10)
        #expect(bench.takeMessages().isEmpty)
    }

    @Test func whatIsNotEnabledWaits() {
        bench.write(bench.child, 0x1fdc, 10)
        line.set(true)
        #expect(bench.takeMessages().isEmpty && bench.read(bench.child, 0x1c00) == 1 << 10)
        bench.write(bench.child, 0x1edc, 10)
        #expect(bench.takeMessages().map(\.identity) == [77])
    }

    @Test func softwareSendsMessages() {
        bench.write(bench.child, 0x3000, 1 << 18 | 5)
        bench.write(bench.root, 0x3000, 6)
        let messages = bench.takeMessages()
        #expect(messages.map(\.address) == [0x2800_1000, 0x2400_0000] && messages.map(\.identity) == [5, 6])
    }

    @Test func lockedAddressesStayAndTheChildHasNone() {
        bench.write(bench.child, 0x1bc8, 1)
        #expect(bench.read(bench.child, 0x1bc8) == 0)
        bench.write(bench.root, 0x1bc4, 1 << 31 | 4 << 12)
        bench.write(bench.root, 0x1bc8, 1)
        #expect(bench.read(bench.root, 0x1bc8) == 0x28000)
    }

    @Test func withoutFirmwareTheSupervisorHasEverything() {
        let fresh = APLICBench(messages: true)
        fresh.root.afterReset = { [unowned fresh] in fresh.root.delegateAll(messagesTo: 0x2800_0000) }
        let line = fresh.root.line(33)
        line.set(true)
        fresh.child.reset()
        fresh.root.reset()
        fresh.write(fresh.child, APLICBench.source(33), 6)
        fresh.write(fresh.child, APLICBench.target(33), 1 << 18 | 9)
        fresh.write(fresh.child, 0x1edc, 33)
        fresh.write(fresh.child, 0, 0x100)
        let messages = fresh.takeMessages()
        #expect(
            messages.map(\.address) == [0x2800_1000] && messages.map(\.identity) == [9], "a wire that was up before")
    }
}
