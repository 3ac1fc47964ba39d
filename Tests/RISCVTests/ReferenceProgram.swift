import Foundation
import TestSupport

/// A table of cases for Tests/Guests/reference/engine.S: code, the state that each case begins with, and the operands
/// that change from case to case. It is written to a file that is a guest's RAM, and the records are read from there.
///
/// Nothing here depends on what runs it: everything is at the same address each time.
final class ReferenceProgram {
    // MARK: Memory

    static let ramSize = 128 << 20
    static let ram: UInt64 = 0x8000_0000
    /// Code of the groups, and room for code that cases write.
    static let code: UInt64 = 0x8040_0000
    /// A page of compressed ebreaks, for code that jumps somewhere.
    static let arena: UInt64 = 0x8060_0000
    /// What cases may load from and store to.
    static let data: UInt64 = 0x8070_0000
    static let pageTables: UInt64 = 0x8080_0000
    private static let header: UInt64 = 0x8100_0000
    private static let tables: UInt64 = 0x8100_1000
    private static let records: UInt64 = 0x8400_0000
    /// Behind the records a firmware's device tree may be.
    private static let recordsEnd: UInt64 = 0x87c0_0000

    // MARK: The state that a case begins with

    /// Numbers of the words of a state.
    enum Place {
        static let mstatus = 0
        static func x(_ register: UInt32) -> Int { Int(register) }
        static func f(_ register: UInt32) -> Int { 32 + Int(register) }
        static let fcsr = 64, pc = 65
        /// Two words that are stored before the case: address (or 0) and value.
        static let poke = 66, pokeValue = 67, secondPoke = 68, secondPokeValue = 69
        /// The address of a doubleword that is recorded after the case, or 0.
        static let watch = 70
        static let satp = 71, medeleg = 72, mideleg = 73, mie = 74, mip = 75, menvcfg = 76, stvec = 77
        static let mcounteren = 78, scounteren = 79, senvcfg = 80
        /// pmpcfg0 and pmpcfg2, then pmpaddr0 to 3.
        static let pmpConfiguration = 81, secondPMPConfiguration = 82
        static func pmpAddress(_ entry: Int) -> Int { 83 + entry }
        static let count = 87
    }

    struct State {
        var words = [UInt64](repeating: 0, count: Place.count)
        subscript(place: Int) -> UInt64 {
            get { words[place] }
            set { words[place] = newValue }
        }

        /// M-mode, floating point on and dirty, and another value in each register.
        init() {
            words[Place.mstatus] = MachineStatus.machine | MachineStatus.floatDirty
            for register in 1..<32 {
                words[register] = 0x0101_0101_0101_0101 &* UInt64(register) ^ 0x8000_0000_0000_0000
            }
            // NaN-boxed small numbers.
            for register in 0..<32 { words[32 + register] = 0xffff_ffff_3f80_0000 + UInt64(register) << 12 }
            words[Place.secondPMPConfiguration] = 0x1f << 56
        }
    }

    /// What a group's cases need before them.
    struct Flags: OptionSet {
        let rawValue: UInt64
        /// sfence.vma.
        static let translation = Flags(rawValue: 1)
        /// satp and the words behind it are CSRs to write.
        static let registers = Flags(rawValue: 2)
        /// fence.i, as the pokes are code.
        static let code = Flags(rawValue: 4)
        /// The PMP words are CSRs to write.
        static let protection = Flags(rawValue: 8)
    }

    // MARK: Groups

    /// Cases that differ in operands only.
    struct Group {
        let name: String
        /// Where the operands go.
        let places: [Int]
        let cases: Int
        /// Of its first case, in all of the program's.
        let firstCase: Int
        /// The group's operands, `places.count` a case.
        let operands: Range<Int>
        /// What must be equal.
        let compared: ReferenceRecord.Fields
    }

    let name: String
    let seed: UInt64
    /// What follows `virt,memory-backend=ram` in `-M`, and more options, for both machines.
    var machine = ""
    var options: [String] = []
    /// Properties of `-cpu` that both machines get besides `max`; for one that has all extensions.
    var flags: [String] = []
    private(set) var random: ReferenceRandom
    private(set) var groups: [Group] = []
    private(set) var operands: [UInt64] = []
    private var states: [[UInt64]] = []
    private var stateNumbers: [[UInt64]: Int] = [:]
    private var descriptors: [(state: Int, result: Int, flags: Flags)] = []
    private var codeWords: [UInt32] = []
    private var codePlaces: [[UInt32]: UInt64] = [:]
    private var memory: [(address: UInt64, bytes: [UInt8])] = []
    private(set) var caseCount = 0

    init(_ name: String, seed: UInt64 = 0x5eed) {
        self.name = name
        self.seed = seed
        random = ReferenceRandom(state: seed)
        fill(ReferenceProgram.arena, count: 4096, with: Instruction.compressedBreak)
    }

    func nextRandom() -> UInt64 { random.next() }

    /// The address of code that ends with an ebreak; the same code has one address.
    func place(code words: [UInt32]) -> UInt64 {
        if let known = codePlaces[words] { return known }
        let address = ReferenceProgram.code + UInt64(codeWords.count * 4)
        // Two, for an instruction that jumps over one.
        codeWords += words + [Instruction.ebreak, Instruction.ebreak, Instruction.ebreak]
        precondition(ReferenceProgram.code + UInt64(codeWords.count * 4) <= ReferenceProgram.arena)
        codePlaces[words] = address
        return address
    }

    /// - Parameters:
    ///   - code: is put in its place and entered; nil if the state's pc says where to begin.
    ///   - result: the register to record: 1 to 31 for x, 32 to 63 for f.
    ///   - places: of the operands in the state.
    ///   - operands: for each case as many values as there are places.
    func add(
        _ name: String, code: [UInt32]? = nil, state: State = State(), result: Int = 0, flags: Flags = [],
        compared: ReferenceRecord.Fields = .all, places: [Int] = [], operands: [UInt64] = []
    ) {
        var state = state
        if let code { state[Place.pc] = place(code: code) }
        precondition(places.count <= 8 && (places.isEmpty || operands.count % places.count == 0))
        let cases = places.isEmpty ? 1 : operands.count / places.count
        guard cases > 0 else { return }
        groups.append(
            Group(
                name: name, places: places, cases: cases, firstCase: caseCount,
                operands: self.operands.count..<self.operands.count + operands.count, compared: compared))
        self.operands += operands
        caseCount += cases
        let number = stateNumbers[state.words] ?? states.count
        if number == states.count {
            states.append(state.words)
            stateNumbers[state.words] = number
        }
        descriptors.append((number, result, flags))
    }

    /// Timers that are not due: what they hold after a reset is each machine's own.
    func addTimersOff() {
        var state = State()
        state[11] = 0x200_4000
        state[12] = UInt64.max
        add("timers off", code: [Instruction.sd(12, 11), Instruction.csrrw(0, 0x14d, 12)], state: state)
    }

    /// Puts bytes into RAM before the start.
    func store(_ address: UInt64, _ bytes: [UInt8]) { memory.append((address, bytes)) }
    func store(_ address: UInt64, words: [UInt64]) { store(address, words.flatMap { littleEndian($0) }) }
    func fill(_ address: UInt64, count: Int, with half: UInt16) {
        store(address, (0..<count / 2).flatMap { _ in littleEndian(half) })
    }

    // MARK: Writing and reading

    /// The engine, as an ELF file.
    static func engine() throws -> String {
        let source = "\(Products.repository)/Tests/Guests/reference/engine.S"
        let layout: [(String, Int)] =
            [
                ("HEADER", Int(header)), ("HEADER_GROUPS", 0), ("HEADER_GROUP_COUNT", 8), ("HEADER_RECORDS", 16),
                ("HEADER_DONE", 24), ("HEADER_ASKED", 32), ("HEADER_REGISTERS", 64),
                ("GROUP_STATE", 0), ("GROUP_CASES", 8), ("GROUP_OPERANDS", 16), ("GROUP_PLACES", 24),
                ("GROUP_RESULT", 32),
                ("GROUP_FLAGS", 40), ("GROUP_SIZE", groupSize),
                ("FLAG_TLB", Int(Flags.translation.rawValue)), ("FLAG_CSRS", Int(Flags.registers.rawValue)),
                ("FLAG_CODE", Int(Flags.code.rawValue)), ("FLAG_PMP", Int(Flags.protection.rawValue)),
                ("STATE_PMPCFG", Place.pmpConfiguration), ("STATE_PMPADDR", Place.pmpAddress(0)),
                ("STATE_MSTATUS", Place.mstatus), ("STATE_X", Place.x(0)), ("STATE_F", Place.f(0)),
                ("STATE_FCSR", Place.fcsr), ("STATE_PC", Place.pc), ("STATE_POKES", Place.poke),
                ("STATE_WATCH", Place.watch), ("STATE_SATP", Place.satp), ("STATE_MEDELEG", Place.medeleg),
                ("STATE_MIDELEG", Place.mideleg), ("STATE_MIE", Place.mie), ("STATE_MIP", Place.mip),
                ("STATE_MENVCFG", Place.menvcfg), ("STATE_STVEC", Place.stvec), ("STATE_MCOUNTEREN", Place.mcounteren),
                ("STATE_SCOUNTEREN", Place.scounteren), ("STATE_SENVCFG", Place.senvcfg), ("STATE_WORDS", Place.count),
                // Nine registers are kept between the two.
                ("AFTER", Place.count + 9),
                ("PMPADDR_OPEN", 0x3bf), ("PMPCFG_OPEN", 0x3a2),
            ] + ReferenceRecord.layout.map { ("RECORD_\($0)", $1 * 8) } + [("RECORD_SIZE", ReferenceRecord.size)]
        let header = layout.map { "#define \($0) \($1)\n" }.joined()
        return try GuestBuilder.build(
            "reference", sources: ["engine.S": String(contentsOfFile: source, encoding: .utf8), "layout.h": header])
    }
    private static let groupSize = 48

    /// The address of the engine's `supervisor_trap`.
    static func supervisorTrap() throws -> UInt64 {
        guard let address = try ELFFile(path: engine()).symbol("supervisor_trap") else {
            throw TestError("the engine has no supervisor_trap")
        }
        return address
    }

    /// Makes the RAM that a machine starts with.
    /// - Parameter asked: a case whose registers are to be kept.
    func write(to path: String, asked: Int? = nil) throws {
        precondition(
            ReferenceProgram.records + UInt64(caseCount * ReferenceRecord.size) <= ReferenceProgram.recordsEnd,
            "\(caseCount) cases are too many for one program")
        var tables: [UInt64] = []
        func address(_ words: Int) -> UInt64 { ReferenceProgram.tables + UInt64(words * 8) }
        let statesAt = 0
        let operandsAt = states.count * Place.count
        let groupsAt = operandsAt + operands.count
        for state in states { tables += state }
        tables += operands
        for (group, descriptor) in zip(groups, descriptors) {
            let places = group.places.enumerated().reduce(UInt64(0)) {
                $0 | UInt64($1.element + 1) << UInt64(8 * $1.offset)
            }
            tables += [
                address(statesAt + descriptor.state * Place.count), UInt64(group.cases),
                address(operandsAt + group.operands.lowerBound), places, UInt64(descriptor.result),
                descriptor.flags.rawValue,
            ]
        }
        precondition(address(tables.count) <= ReferenceProgram.records, "the tables are too large")

        let fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
        guard fd >= 0 else { throw TestError.system("open \(path)") }
        defer { close(fd) }
        guard ftruncate(fd, off_t(ReferenceProgram.ramSize)) == 0 else { throw TestError.system("ftruncate \(path)") }
        func put(_ bytes: UnsafeRawBufferPointer, at address: UInt64) throws {
            guard pwrite(fd, bytes.baseAddress, bytes.count, off_t(address - ReferenceProgram.ram)) == bytes.count
            else {
                throw TestError.system("write \(path)")
            }
        }
        for (address, bytes) in memory { try bytes.withUnsafeBytes { try put($0, at: address) } }
        try codeWords.withUnsafeBytes { try put($0, at: ReferenceProgram.code) }
        try tables.withUnsafeBytes { try put($0, at: ReferenceProgram.tables) }
        let header = [
            address(groupsAt), UInt64(groups.count), ReferenceProgram.records, 0,
            asked.map { UInt64($0) } ?? UInt64.max,
        ]
        try header.withUnsafeBytes { try put($0, at: ReferenceProgram.header) }
    }

    /// What a machine left in its RAM.
    struct Outcome {
        private let ram: Data
        init(path: String) throws {
            ram = try Data(contentsOf: URL(fileURLWithPath: path), options: .alwaysMapped)
            guard ram.count >= ReferenceProgram.ramSize else { throw TestError("\(path) is no RAM of a program") }
        }

        private func word(_ address: UInt64) -> UInt64 {
            ram.withUnsafeBytes { $0.load(fromByteOffset: Int(address - ReferenceProgram.ram), as: UInt64.self) }
        }
        /// How many cases it has done.
        var done: Int { Int(word(ReferenceProgram.header + 24)) }

        func record(_ number: Int) -> ReferenceRecord {
            let start = ReferenceProgram.records + UInt64(number * ReferenceRecord.size)
            return ReferenceRecord { word(start + UInt64($0 * 8)) }
        }

        /// Whether a record is the same to the last bit.
        func hasEqualRecord(_ number: Int, _ other: Outcome) -> Bool {
            let start = Int(ReferenceProgram.records - ReferenceProgram.ram) + number * ReferenceRecord.size
            return ram.withUnsafeBytes { a in
                other.ram.withUnsafeBytes { b in
                    memcmp(a.baseAddress! + start, b.baseAddress! + start, ReferenceRecord.size) == 0
                }
            }
        }

        /// x0 to x31 and f0 to f31 after the case that was asked for.
        var registers: [UInt64] { (0..<64).map { word(ReferenceProgram.header + 64 + $0 * 8) } }
    }

    /// The group of a case, and its operands in words.
    func group(of number: Int) -> Group {
        var low = 0
        var high = groups.count
        while high - low > 1 {
            let middle = (low + high) / 2
            if groups[middle].firstCase <= number { low = middle } else { high = middle }
        }
        return groups[low]
    }
    func operands(of number: Int) -> ArraySlice<UInt64> {
        let group = group(of: number)
        let start = group.operands.lowerBound + (number - group.firstCase) * group.places.count
        return operands[start..<start + group.places.count]
    }
}

/// What came of a case.
struct ReferenceRecord {
    static let layout = [
        ("MCAUSE", 0), ("MEPC", 1), ("MTVAL", 2), ("MSTATUS", 3), ("RESULT", 4), ("FCSR", 5), ("X", 6), ("F", 7),
        ("SCAUSE", 8), ("SEPC", 9), ("STVAL", 10), ("WATCHED", 11),
    ]
    static let size = layout.count * 8

    struct Fields: OptionSet, Hashable {
        let rawValue: Int
        static let mcause = Fields(rawValue: 1 << 0), mepc = Fields(rawValue: 1 << 1), mtval = Fields(rawValue: 1 << 2)
        static let mstatus = Fields(rawValue: 1 << 3), result = Fields(rawValue: 1 << 4)
        static let fcsr = Fields(rawValue: 1 << 5), x = Fields(rawValue: 1 << 6), f = Fields(rawValue: 1 << 7)
        static let scause = Fields(rawValue: 1 << 8), sepc = Fields(rawValue: 1 << 9)
        static let stval = Fields(rawValue: 1 << 10), watched = Fields(rawValue: 1 << 11)
        static let all = Fields(rawValue: 1 << 12 - 1)
    }

    let words: [UInt64]
    init(_ word: (Int) -> UInt64) { words = (0..<ReferenceRecord.layout.count).map(word) }

    var mcause: UInt64 { words[0] }
    var mepc: UInt64 { words[1] }
    var mtval: UInt64 { words[2] }
    var mstatus: UInt64 { words[3] }
    var result: UInt64 { words[4] }
    var fcsr: UInt64 { words[5] }
    var scause: UInt64 { words[8] }
    var sepc: UInt64 { words[9] }
    var stval: UInt64 { words[10] }
    var watched: UInt64 { words[11] }

    func differs(from other: ReferenceRecord) -> Fields {
        var fields: Fields = []
        for index in words.indices where words[index] != other.words[index] {
            fields.insert(Fields(rawValue: 1 << index))
        }
        return fields
    }
}

/// Bits of mstatus that the cases begin with.
enum MachineStatus {
    /// mret goes to this mode (MPP).
    static let user: UInt64 = 0, supervisor: UInt64 = 1 << 11, machine: UInt64 = 3 << 11
    static let floatDirty: UInt64 = 3 << 13
    static let sie: UInt64 = 1 << 1, mie: UInt64 = 1 << 3, spie: UInt64 = 1 << 5, mpie: UInt64 = 1 << 7
    static let spp: UInt64 = 1 << 8, mprv: UInt64 = 1 << 17, sum: UInt64 = 1 << 18, mxr: UInt64 = 1 << 19
    static let tvm: UInt64 = 1 << 20, tw: UInt64 = 1 << 21, tsr: UInt64 = 1 << 22
}

/// SplitMix64: the same numbers for a seed in each run.
struct ReferenceRandom: RandomNumberGenerator {
    var state: UInt64
    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var value = state
        value = (value ^ (value >> 30)) &* 0xbf58_476d_1ce4_e5b9
        value = (value ^ (value >> 27)) &* 0x94d0_49bb_1331_11eb
        return value ^ (value >> 31)
    }
}

func littleEndian<T: FixedWidthInteger>(_ value: T) -> [UInt8] { withUnsafeBytes(of: value.littleEndian) { Array($0) } }
