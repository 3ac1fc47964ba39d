import Testing

/// Physical memory protection against QEMU: accesses of each kind around the bounds of entries.
@Suite("QEMU as reference: PMP", .enabled(if: ReferenceMachine.absence == nil, "\(ReferenceMachine.absence ?? "")"))
struct ReferencePMPTests {
    private typealias Place = ReferenceProgram.Place

    private static let read: UInt64 = 1, write: UInt64 = 2, execute: UInt64 = 4, all: UInt64 = 7
    private static let top: UInt64 = 1 << 3, four: UInt64 = 2 << 3, power: UInt64 = 3 << 3, locked: UInt64 = 0x80

    /// A page of data, one of compressed nops, and one of nops that lie across every four bytes.
    private static let data: UInt64 = 0x8090_0000
    private static let shortCode: UInt64 = 0x8091_0000
    private static let longCode: UInt64 = 0x8092_0000

    private static func addPages(_ program: ReferenceProgram) {
        program.store(data, words: (0..<1024).map { _ in program.nextRandom() })
        program.fill(shortCode, count: 8192, with: Instruction.compressedBreak)
        program.fill(longCode, count: 8192, with: Instruction.compressedBreak)
        for place in codePlaces {
            program.fill(shortCode + place - 16, count: 96, with: 1)
            program.store(longCode + place - 18, (0..<24).flatMap { _ in littleEndian(UInt32(0x13)) })
        }
    }

    /// In the middle of a page, and at the end of one.
    private static let codePlaces: [UInt64] = [0x800, 0x1000]

    private static func napot(_ start: UInt64, _ size: UInt64) -> UInt64 { (start | (size / 2 - 1)) >> 2 }

    /// Entries 0 to 2, the permissions of one of which are to be filled in.
    private struct Layout {
        let name: String
        let entries: [(matching: UInt64, address: UInt64)]
        /// Whose permissions vary; the others' are given.
        let varying: Int
        var others: UInt64 = 0
    }

    private static func layouts(at base: UInt64) -> [Layout] {
        [
            Layout(name: "NA4", entries: [(four, base >> 2)], varying: 0),
            Layout(name: "NAPOT 8", entries: [(power, napot(base, 8))], varying: 0),
            Layout(name: "NAPOT 32", entries: [(power, napot(base, 32))], varying: 0),
            Layout(name: "NAPOT of a page", entries: [(power, napot(base & ~0xfff, 0x1000))], varying: 0),
            Layout(name: "TOR", entries: [(0, base >> 2), (top, (base + 24) >> 2)], varying: 1),
            Layout(name: "TOR from 0", entries: [(top, (base + 8) >> 2)], varying: 0),
            Layout(name: "TOR of nothing", entries: [(0, (base + 16) >> 2), (top, (base + 8) >> 2)], varying: 1),
            Layout(
                name: "TOR behind NAPOT", entries: [(power, napot(base + 32, 8)), (top, (base + 64) >> 2)], varying: 1,
                others: all),
            Layout(
                name: "NA4 before NAPOT", entries: [(four, base >> 2), (power, napot(base & ~63, 64))], varying: 0,
                others: all),
            Layout(
                name: "NA4 that allows before NAPOT", entries: [(four, base >> 2), (power, napot(base & ~63, 64))],
                varying: 1, others: all),
            Layout(
                name: "neighbours", entries: [(four, base >> 2), (four, (base + 4) >> 2), (power, napot(base + 8, 8))],
                varying: 1, others: all),
            Layout(name: "everything", entries: [(power, (1 << 54) - 1)], varying: 0),
        ]
    }

    private static let offsets: [Int64] = [
        -8, -7, -4, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 18, 20, 22, 23, 24, 28, 30, 32, 36, 40, 56, 60,
        62,
        63, 64,
    ]

    private static let modes: [(name: String, mpp: UInt64)] = [
        ("M", MachineStatus.machine), ("S", MachineStatus.supervisor), ("U", MachineStatus.user),
    ]

    /// - Parameter isOpen: whether what no entry matches may be used by S and U; else the code only.
    private static func add(
        _ program: ReferenceProgram, _ name: String, _ code: [UInt32], base: UInt64, isOpen: Bool, width: UInt64,
        permissions: [UInt64], flags: ReferenceProgram.Flags = [.translation, .protection]
    ) {
        for layout in layouts(at: base) {
            for (mode, mpp) in modes {
                var state = ReferenceProgram.State()
                state[Place.mstatus] = mpp | MachineStatus.floatDirty
                state[Place.pc] = program.place(code: code)
                if !isOpen { state[Place.secondPMPConfiguration] = 0 }
                for (index, entry) in layout.entries.enumerated() { state[Place.pmpAddress(index)] = entry.address }
                var fixed: UInt64 = 0
                if !isOpen {
                    state[Place.pmpAddress(3)] = napot(ReferenceProgram.code, 0x20_0000)
                    fixed = (power | all) << 24
                }
                var operands: [UInt64] = []
                for permission in permissions {
                    var configuration = fixed
                    for (index, entry) in layout.entries.enumerated() where entry.matching != 0 {
                        let bits = index == layout.varying ? permission : layout.others
                        configuration |= (entry.matching | bits) << UInt64(8 * index)
                    }
                    for offset in offsets where offset & Int64(width - 1) == 0 {
                        operands += [base &+ UInt64(bitPattern: offset), configuration]
                    }
                }
                program.add(
                    "\(name), \(layout.name), \(mode), \(isOpen ? "open" : "closed")", state: state, result: 10,
                    flags: flags, places: [11, Place.pmpConfiguration], operands: operands)
            }
        }
    }

    /// W without R is reserved.
    private static let permissions: [UInt64] = [0, 1, 3, 4, 5, 7]

    @Test func data() throws {
        let program = ReferenceProgram("PMP of loads and stores")
        Self.addPages(program)
        let base = Self.data + 0x800
        var accesses: [(String, [UInt32], UInt64)] = []
        for load in Instruction.loads.prefix(4) {
            accesses.append((load.name, [Instruction.i(0x03, load.funct3, 10, 11, 0)], 1))
        }
        for store in Instruction.stores {
            accesses.append((store.name, [Instruction.s(0x23, store.funct3, 11, 12, 0)], 1))
        }
        accesses += [
            ("amoadd.w", [Instruction.amo(2, 0, 0, 10, 11, 12)], 4),
            ("amoadd.d", [Instruction.amo(3, 0, 0, 10, 11, 12)], 8),
            ("lr.w", [Instruction.amo(2, 2, 0, 10, 11, 0)], 4),
            ("lr.d, sc.d", [Instruction.amo(3, 2, 0, 10, 11, 0), Instruction.amo(3, 3, 0, 13, 11, 12)], 8),
            ("fld", [Instruction.i(0x07, 3, 10, 11, 0)], 1),
        ]
        for (name, code, width) in accesses {
            Self.add(program, name, code, base: base, isOpen: true, width: width, permissions: [0, 1, 3, 4])
            guard ["lw", "sd", "amoadd.w"].contains(name) else { continue }
            Self.add(program, name, code, base: base, isOpen: false, width: width, permissions: [0, 1, 3, 7])
        }
        // Across the end of a page.
        for (name, code, width) in accesses where ["ld", "sw"].contains(name) {
            Self.add(
                program, "\(name) at the end of a page", code, base: Self.data + 0x1000, isOpen: true, width: width,
                permissions: [0, 1, 3])
        }
        try program.compare(exceptions: [
            ReferenceException(
                reason: "QEMU looks at the first and the last byte of an access only "
                    + "(privileged 1.12, 3.7.1: an entry that matches any byte must match all)", isRequired: false
            ) {
                // Eight bytes around an entry of four.
                let isAround = $0.operands.first.map { (0x7fd...0x7ff).contains($0 & 0xfff) } ?? false
                let isFour = $0.group.contains("NA4") || $0.group.contains("neighbours")
                return isAround && isFour && $0.qemu.mcause == 3 ? .all : []
            },
            ReferenceException(
                reason: "an access across pages may be checked as a whole or by its parts (privileged 1.12, 3.7.1)",
                isRequired: false
            ) {
                let width: UInt64 = $0.group.hasPrefix("sw") ? 4 : 8
                let isAcross = $0.operands.first.map { $0 & 0xfff > 0x1000 - width } ?? false
                return isAcross && $0.group.contains("end of a page") ? .all : []
            },
        ])
    }

    @Test func code() throws {
        let program = ReferenceProgram("PMP of fetches")
        Self.addPages(program)
        for (name, page) in [("16-bit code", Self.shortCode), ("32-bit code", Self.longCode)] {
            for isOpen in [true, false] {
                for place in Self.codePlaces {
                    Self.add(
                        program, "\(name) at \(Hex64(place))", [Instruction.jalr(1, 11)], base: page + place,
                        isOpen: isOpen,
                        width: 2, permissions: Self.permissions)
                }
            }
        }
        try program.compare(exceptions: [
            ReferenceException(
                reason: "QEMU checks fetches where a page is entered only (privileged 1.12, 3.7.1: every access)",
                versions: ReferenceException.beforeTen
            ) { $0.baton.mcause == 1 && $0.qemu.mcause == 3 ? .all : [] }
        ])
    }

    /// What is locked holds for M-mode too, and stays.
    @Test func lockedEntries() throws {
        let program = ReferenceProgram("locked PMP entries")
        Self.addPages(program)
        let permissions: [UInt64] = [0, 1, 3, 4, 5, 7]
        // Six of 16 bytes, three of four, and two ranges of two entries.
        var configurations = permissions.map { Self.locked | Self.power | $0 }
        var addresses = (0..<6).map { Self.napot(Self.data + 0x800 + 64 * $0, 16) }
        configurations += [0, 1, 4].map { Self.locked | Self.four | $0 }
        addresses += (0..<3).map { (Self.data + 0xa00 + 64 * $0) >> 2 }
        configurations += [0, Self.locked | Self.top | 1]
        addresses += [(Self.data + 0xb00) >> 2, (Self.data + 0xb18) >> 2]
        configurations += [0, Self.locked | Self.top | 4]
        addresses += [(Self.shortCode + 0x900) >> 2, (Self.shortCode + 0x910) >> 2]
        configurations += [Self.locked | Self.power | 1]
        addresses += [Self.napot(Self.shortCode + 0xa00, 16)]
        func words(_ range: Range<Int>) -> UInt64 {
            range.reduce(UInt64(0)) {
                $0 | ($1 < configurations.count ? configurations[$1] : 0x1f) << UInt64(8 * ($1 - range.lowerBound))
            }
        }
        while configurations.count < 15 {
            configurations.append(0)
            addresses.append(0)
        }
        var state = ReferenceProgram.State()
        for (index, address) in addresses.enumerated() {
            state[11] = address
            program.add("pmpaddr\(index)", code: [Instruction.csrrw(10, 0x3b0 + index, 11)], state: state)
        }
        state[11] = words(0..<8)
        state[12] = words(8..<16)
        program.add("locks", code: [Instruction.csrrw(10, 0x3a0, 11), Instruction.csrrw(10, 0x3a2, 12)], state: state)

        let places = (0..<12).map { Self.data + 0x800 + 64 * $0 } + [Self.data + 0xb00]
        var accesses: [(String, [UInt32])] = []
        for load in Instruction.loads.prefix(4) {
            accesses.append((load.name, [Instruction.i(0x03, load.funct3, 10, 11, 0)]))
        }
        for store in Instruction.stores {
            accesses.append((store.name, [Instruction.s(0x23, store.funct3, 11, 12, 0)]))
        }
        for (mode, mpp) in Self.modes {
            var state = ReferenceProgram.State()
            state[Place.mstatus] = mpp | MachineStatus.floatDirty
            let around = Self.offsets.filter { $0 < 33 }
            for (name, code) in accesses {
                // Eight bytes around an entry of four: QEMU looks at the first and the last byte only, see `data`.
                let isWide = ["ld", "sd"].contains(name)
                program.add(
                    "\(name) in \(mode)", code: code, state: state, result: 10, flags: .translation, places: [11],
                    operands: places.flatMap { place in
                        around.filter { !isWide || place & 0xf00 != 0xa00 || !(-3 ... -1).contains($0) }
                            .map { place &+ UInt64(bitPattern: $0) }
                    })
            }
            program.add(
                "fetch in \(mode)", code: [Instruction.jalr(1, 11)], state: state, flags: .translation, places: [11],
                operands: [Self.shortCode + 0x900, Self.shortCode + 0xa00].flatMap { place in
                    around.filter { $0 & 1 == 0 }.map { place &+ UInt64(bitPattern: $0) }
                })
        }
        // Nothing of what is locked changes, nor the address below a locked TOR; the rest does.
        for index in 0..<15 {
            program.add(
                "write pmpaddr\(index)",
                code: [Instruction.csrrw(10, 0x3b0 + index, 11), Instruction.csrrw(12, 0x3b0 + index, 10)],
                result: 12, places: [11], operands: [0, 0x1234, (1 << 54) - 1])
        }
        for number in [0x3a0, 0x3a2] {
            program.add(
                "write CSR \(Hex64(UInt64(number)))",
                code: [Instruction.csrrw(10, number, 11), Instruction.csrrw(12, number, 10)],
                result: 12, places: [11],
                operands: [0, 0x1b1b_1b1b_1b1b_1b1b, 0x0909_0909_0909_0909].map {
                    $0 & 0x00ff_ffff_ffff_ffff | 0x1f << 56
                })
        }
        try program.compare()
    }

    /// Translation reads and writes page tables as S-mode does.
    @Test func pageTables() throws {
        let program = ReferenceProgram("PMP of page tables")
        let root = ReferenceProgram.pageTables
        let last = root + 0x2000
        program.store(root + 2 * 8, words: [0x8000_0000 >> 2 | 0xcf])
        program.store(root + 16 * 8, words: [(root + 0x1000) >> 2 | 1])
        program.store(root + 0x1000, words: [last >> 2 | 1])
        let page: UInt64 = 0x8090_0000
        program.store(page, words: (0..<512).map { _ in UInt64(Instruction.ebreak) << 32 | UInt64(Instruction.ebreak) })
        let accesses: [(String, [UInt32])] = [
            ("load", [Instruction.ld(10, 11)]), ("store", [Instruction.sd(12, 11)]),
            ("fetch", [Instruction.jalr(1, 11)]),
            ("amoadd", [Instruction.amo(3, 0, 0, 10, 11, 12)]),
        ]
        for (name, code) in accesses {
            for (table, start) in [("root", root), ("middle", root + 0x1000), ("last", last), ("page", page)] {
                var state = ReferenceProgram.State()
                state[Place.mstatus] = MachineStatus.supervisor | MachineStatus.floatDirty
                state[Place.pc] = program.place(code: code)
                state[Place.satp] = 8 << 60 | root >> 12
                state[Place.menvcfg] = 1 << 61
                state[Place.stvec] = try ReferenceProgram.supervisorTrap()
                state[Place.poke] = last
                state[Place.watch] = last
                state[Place.secondPoke] = page
                state[Place.secondPokeValue] = UInt64(Instruction.ebreak) << 32 | UInt64(Instruction.ebreak)
                state[11] = 16 << 30
                var operands: [UInt64] = []
                for permission in Self.permissions {
                    for entry in [0xcf, 0x0f, 0x4f, 0xc3] as [UInt64] {
                        for (matching, address) in [
                            (Self.power, Self.napot(start, 0x1000)), (Self.power, Self.napot(start, 8)),
                            (Self.four, start >> 2), (Self.four, start >> 2 + 1),
                        ] {
                            operands += [page >> 2 | entry, address, matching | permission]
                        }
                    }
                }
                program.add(
                    "\(name) with PMP of the \(table)", state: state, result: 10,
                    flags: [.translation, .registers, .protection],
                    places: [Place.pokeValue, Place.pmpAddress(0), Place.pmpConfiguration], operands: operands)
            }
        }
        try program.compare(exceptions: [
            ReferenceException(
                reason: "QEMU updates A and D where PMP lets it read only (privileged 1.12, 3.7.2: implicit accesses)",
                versions: ReferenceException.beforeTen
            ) {
                let isUpdate = $0.operands.first.map { $0 & 0xc0 != 0xc0 } ?? false
                return isUpdate && $0.baton.mcause != 3 && $0.qemu.mcause == 3 ? .all : []
            },
            ReferenceException(
                reason: "QEMU's AMOs read first, and set A only where they may not write (either may be early)",
                isRequired: false
            ) {
                guard $0.group.hasPrefix("amoadd with PMP of the page") else { return [] }
                return $0.qemu.mcause == 5 && [7, 15].contains($0.baton.mcause) ? [.mcause, .watched] : .watched
            },
        ])
    }
}
