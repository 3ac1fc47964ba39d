import Testing

/// Page tables against QEMU: each combination of permissions at each level, in each mode.
@Suite(
    "QEMU as reference: page tables", .enabled(if: ReferenceMachine.absence == nil, "\(ReferenceMachine.absence ?? "")")
)
struct ReferencePagingTests {
    private typealias Place = ReferenceProgram.Place

    private enum Entry {
        static let valid: UInt64 = 1, read: UInt64 = 2, write: UInt64 = 4, execute: UInt64 = 8, user: UInt64 = 16
        static let accessed: UInt64 = 64, dirty: UInt64 = 128
        static let all = valid | read | write | execute | accessed | dirty
    }

    // MARK: The map

    /// Tables: the roots of Sv39 and Sv48, another root for each, and the two levels of the region under test.
    static let root39 = ReferenceProgram.pageTables
    static let middle = root39 + 0x1000
    static let last = root39 + 0x2000
    static let root48 = root39 + 0x3000
    private static let otherRoot39 = root39 + 0x4000
    private static let otherRoot48 = root39 + 0x5000
    private static let root57 = root39 + 0x6000
    private static let otherRoot57 = root39 + 0x7000
    /// Three pages of ebreaks that the region maps.
    static let page: UInt64 = 0x8090_0000
    /// Where U-mode finds what is at 0x80000000 for S-mode.
    private static let userAlias: UInt64 = 0x8000_0000
    /// The region under test.
    static let region: UInt64 = 16 << 30

    private static func pointer(_ table: UInt64) -> UInt64 { table >> 2 | Entry.valid }
    static func leaf(_ physical: UInt64, _ flags: UInt64) -> UInt64 { physical >> 2 | flags }

    static func addTables(_ program: ReferenceProgram) {
        let identity = leaf(0x8000_0000, Entry.all)
        for (root, target) in [(root39, pointer(middle)), (otherRoot39, leaf(0x8000_0000, Entry.all))] {
            program.store(root + 2 * 8, words: [identity])
            program.store(root + 4 * 8, words: [identity | Entry.user])
            program.store(root + 16 * 8, words: [target])
            // The ends of what Sv39 reaches.
            program.store(root + 255 * 8, words: [identity, identity])
        }
        // All of this is in the lowest 512 GiB, so Sv48 has it by one entry, and its own ends.
        for (root, next) in [(root48, root39), (otherRoot48, otherRoot39)] {
            program.store(root, words: [pointer(next)])
            program.store(root + 255 * 8, words: [pointer(next), pointer(next)])
        }
        for (root, next) in [(root57, root48), (otherRoot57, otherRoot48)] {
            program.store(root, words: [pointer(next)])
            program.store(root + 255 * 8, words: [pointer(next), pointer(next)])
        }
        program.store(middle, words: [pointer(last)])
        for index in 0..<4 as Range<UInt64> {
            program.store(last + index * 8, words: [leaf(page + index * 0x1000, Entry.all)])
        }
        program.store(
            page, words: (0..<2048).map { _ in UInt64(Instruction.ebreak) << 32 | UInt64(Instruction.ebreak) })
    }

    /// - Parameter mode: MPP.
    static func state(_ program: ReferenceProgram, _ code: [UInt32], mode: UInt64, satp: UInt64) throws
        -> ReferenceProgram.State
    {
        var state = ReferenceProgram.State()
        state[Place.mstatus] = mode | MachineStatus.floatDirty
        state[Place.pc] = program.place(code: code) + (mode == MachineStatus.user ? userAlias : 0)
        state[Place.stvec] = try ReferenceProgram.supervisorTrap()
        state[Place.satp] = satp
        state[Place.menvcfg] = 1 << 61
        return state
    }

    static let schemes: [(name: String, satp: UInt64)] = [
        ("Sv39", 8 << 60 | root39 >> 12), ("Sv48", 9 << 60 | root48 >> 12), ("Sv57", 10 << 60 | root57 >> 12),
    ]
    /// Those of both machines.
    private static func schemes(_ reference: ReferenceMachine) -> ArraySlice<(name: String, satp: UInt64)> {
        schemes.prefix(reference.hasAll ? 3 : 2)
    }

    private static let accesses: [(name: String, code: [UInt32])] = [
        ("load", [Instruction.ld(10, 11)]), ("store", [Instruction.sd(12, 11)]),
        ("amoadd", [Instruction.amo(3, 0, 0, 10, 11, 12)]), ("fetch", [Instruction.jalr(1, 11)]),
        ("lr", [Instruction.amo(3, 2, 0, 10, 11, 0)]), ("sc", [Instruction.amo(3, 3, 0, 10, 11, 12)]),
        ("float load", [Instruction.i(0x07, 3, 10, 11, 0)]), ("byte store", [Instruction.s(0x23, 0, 11, 12, 0)]),
    ]

    private static let supervisor = [
        0, MachineStatus.sum, MachineStatus.mxr, MachineStatus.sum | MachineStatus.mxr,
    ].map { $0 | MachineStatus.supervisor | MachineStatus.floatDirty }
    private static let user = [0, MachineStatus.sum, MachineStatus.mxr].map {
        $0 | MachineStatus.user | MachineStatus.floatDirty
    }

    /// The entry under test for each level, the virtual address that it maps, and what it points to.
    private static let levels: [(name: String, entry: UInt64, address: UInt64, target: UInt64, mode: UInt64)] = [
        ("4 KiB", last, region, page, 8), ("2 MiB", middle + 8, region + 0x30_0000, 0x8080_0000, 8),
        ("1 GiB", root39 + 17 * 8, region + 0x4090_0000, 0x8000_0000, 8),
        ("512 GiB", root48 + 8, 1 << 39 | page, 0, 9), ("256 TiB", root57 + 8, 1 << 48 | page, 0, 10),
    ]

    // MARK: Tests

    @Test(arguments: ReferenceMachine.all) func permissions(_ reference: ReferenceMachine) throws {
        let program = ReferenceProgram("permissions of pages")
        Self.addTables(program)
        for (scheme, satp) in Self.schemes(reference) {
            for (size, entry, address, target, least) in Self.levels where satp >> 60 >= least {
                for (mode, statuses) in [("S", Self.supervisor), ("U", Self.user)] {
                    for (access, code) in size == "4 KiB" ? Self.accesses[...] : Self.accesses.prefix(4) {
                        for delegation in [0, ReferenceTrapTests.delegated] {
                            // Hardware's setting of A and D on; off is a test of its own.
                            var state = try Self.state(program, code, mode: statuses[0] & (3 << 11), satp: satp)
                            state[11] = address
                            state[Place.medeleg] = delegation
                            state[Place.poke] = entry
                            state[Place.watch] = entry
                            // What a store before has overwritten.
                            state[Place.secondPoke] = Self.page
                            state[Place.secondPokeValue] = UInt64(Instruction.ebreak) << 32 | UInt64(Instruction.ebreak)
                            var operands: [UInt64] = []
                            for status in statuses {
                                for flags in 0..<256 as Range<UInt64> {
                                    // Pointers to what is no table are not what this is about.
                                    if flags & 0xf == 1 && size != "4 KiB" { continue }
                                    operands += [status, Self.leaf(target, flags)]
                                }
                            }
                            program.add(
                                "\(access), \(size) of \(scheme), \(mode)\(delegation == 0 ? "" : ", delegated")",
                                state: state, result: 10, flags: [.translation, .registers],
                                places: [Place.mstatus, Place.pokeValue], operands: operands)
                        }
                    }
                }
            }
        }
        try program.compare(on: reference, exceptions: Self.exceptions)
    }

    @Test func softwareSetsAccessedAndDirty() throws {
        try compareAccessedAndDirty(on: ReferenceMachine.installed, flags: [])
    }

    @Test(
        .enabled(if: ReferenceMachine.recentAbsence == nil, "\(ReferenceMachine.recentAbsence ?? "")"),
        arguments: [[], ["svadu=off"], ["svade=on"], ["svade=on", "svadu=off"]])
    func accessedAndDirtyBy(_ flags: [String]) throws {
        try compareAccessedAndDirty(on: ReferenceMachine.recent, flags: flags)
    }

    private func compareAccessedAndDirty(on reference: ReferenceMachine?, flags: [String]) throws {
        let program = ReferenceProgram("A and D by software \(flags.joined(separator: ","))")
        program.flags = flags
        Self.addTables(program)
        for (access, code) in Self.accesses {
            var state = try Self.state(program, code, mode: MachineStatus.supervisor, satp: Self.schemes[0].satp)
            state[11] = Self.region
            state[Place.poke] = Self.last
            state[Place.watch] = Self.last
            state[Place.secondPoke] = Self.page
            state[Place.secondPokeValue] = UInt64(Instruction.ebreak) << 32 | UInt64(Instruction.ebreak)
            program.add(
                access, state: state, result: 10, flags: [.translation, .registers],
                places: [Place.pokeValue, Place.menvcfg],
                operands: (0..<256).flatMap { [Self.leaf(Self.page, $0), 0, Self.leaf(Self.page, $0), 1 << 61] })
        }
        try program.compare(
            on: reference,
            exceptions: Self.exceptions + [
                ReferenceException(
                    reason: "QEMU 7.2 has no Svadu: it always sets A and D (privileged 1.12, 4.3.1: either is right)",
                    versions: ReferenceException.beforeTen
                ) {
                    let entry = $0.operands[0]
                    let isSet = entry & Entry.accessed != 0 && entry & Entry.dirty != 0
                    return isSet ? [] : .all
                }
            ])
    }

    /// Reserved bits, page numbers that are nowhere, misaligned superpages, tables that are nowhere.
    @Test(arguments: ReferenceMachine.all) func malformedEntries(_ reference: ReferenceMachine) throws {
        let program = ReferenceProgram("malformed page table entries")
        Self.addTables(program)
        for (scheme, satp) in Self.schemes(reference) {
            for (access, code) in Self.accesses.prefix(4) {
                for mode in [MachineStatus.supervisor, MachineStatus.user] {
                    let needed = Entry.all | (mode == MachineStatus.user ? Entry.user : 0)
                    for (size, entry, address, target, least) in Self.levels where satp >> 60 >= least {
                        var state = try Self.state(program, code, mode: mode, satp: satp)
                        state[11] = address
                        state[Place.poke] = entry
                        state[Place.watch] = entry
                        state[Place.secondPoke] = Self.page
                        state[Place.secondPokeValue] = UInt64(Instruction.ebreak) << 32 | UInt64(Instruction.ebreak)
                        let good = Self.leaf(target, needed)
                        // Each bit: those of the page number lead elsewhere, or are misaligned. Bit 32 leads to the
                        // PCI window, and whether code and atomics work there is the board's matter.
                        var operands = (8..<64).filter { $0 != 32 }.map { good ^ 1 << $0 }
                        operands += [0x9000_0000, 0x1000_0000_0000, 1 << 55].map { Self.leaf($0, needed) }
                        program.add(
                            "\(access), bits of \(size) of \(scheme), MPP \(mode >> 11)", state: state, result: 10,
                            flags: [.translation, .registers], places: [Place.pokeValue], operands: operands)
                    }
                    // The pointer to the last table.
                    var state = try Self.state(program, code, mode: mode, satp: satp)
                    state[11] = Self.region
                    state[Place.poke] = Self.middle
                    state[Place.watch] = Self.last
                    state[Place.secondPoke] = Self.last
                    state[Place.secondPokeValue] = Self.leaf(Self.page, needed & ~(Entry.accessed | Entry.dirty))
                    let good = Self.pointer(Self.last)
                    program.add(
                        "\(access), pointer of \(scheme), MPP \(mode >> 11)", state: state, result: 10,
                        flags: [.translation, .registers], places: [Place.pokeValue],
                        operands: [0, good, good & ~1] + (4..<10).map { good | 1 << $0 }
                            + (54..<64).map { good | 1 << $0 }
                            + [0x9000_0000, 0x10_0000, 0x1000_0000_0000].map { Self.pointer($0) })
                    // The last table of the map is no table but a leaf that is a pointer again.
                    state[Place.pokeValue] = good
                    program.add(
                        "\(access), pointer in the last table of \(scheme), MPP \(mode >> 11)", state: state,
                        result: 10,
                        flags: [.translation, .registers], places: [Place.secondPokeValue],
                        operands: [Self.pointer(Self.page), Self.pointer(Self.page) | Entry.user])
                    // A root that is nowhere.
                    program.add(
                        "\(access), root of \(scheme), MPP \(mode >> 11)", state: state, result: 10,
                        flags: [.translation, .registers], places: [Place.satp],
                        operands: [satp & ~0xfff_ffff | 0x90000, satp & ~0xfff_ffff | 0x100])
                }
            }
        }
        try program.compare(on: reference, exceptions: Self.exceptions)
    }

    @Test(arguments: ReferenceMachine.all) func addresses(_ reference: ReferenceMachine) throws {
        let program = ReferenceProgram("virtual addresses")
        Self.addTables(program)
        let addresses: [UInt64] =
            [38, 39, 47, 48, 55, 56, 63].flatMap { bit -> [UInt64] in
                let top: UInt64 = 1 << bit
                return [
                    top - 8, top, top | 0x90_0000, ~top & ~7, (~top &+ 1) & ~7, (~top &+ 1) &- 8,
                    (~(top - 1)) | 0x90_0000,
                ]
            } + [0, 8, Self.page, Self.page | 1 << 63, Self.region | 1 << 62]
        for (scheme, satp) in Self.schemes(reference) + [("bare", 0)] {
            for (access, code) in Self.accesses.prefix(4) {
                for mode in [MachineStatus.supervisor, MachineStatus.user] {
                    var state = try Self.state(program, code, mode: mode, satp: satp)
                    if satp == 0 { state[Place.pc] = program.place(code: code) }
                    state[Place.secondPoke] = Self.page
                    state[Place.secondPokeValue] = UInt64(Instruction.ebreak) << 32 | UInt64(Instruction.ebreak)
                    for delegation in [0, ReferenceTrapTests.delegated] {
                        state[Place.medeleg] = delegation
                        program.add(
                            "\(access), \(scheme), MPP \(mode >> 11)\(delegation == 0 ? "" : ", delegated")",
                            state: state,
                            result: 10, flags: [.translation, .registers], places: [11], operands: addresses)
                    }
                }
            }
        }
        try program.compare(on: reference, exceptions: Self.exceptions)
    }

    /// Svpbmt and Svnapot: types of memory with and without menvcfg.PBMTE, and pages of 64 KiB, at each level.
    @Test(
        .enabled(if: ReferenceMachine.recentAbsence == nil, "\(ReferenceMachine.recentAbsence ?? "")"),
        arguments: [[], ["svnapot=off"], ["svpbmt=off"], ["svnapot=off", "svpbmt=off"]])
    func memoryTypes(_ flags: [String]) throws {
        let program = ReferenceProgram("Svpbmt and Svnapot \(flags.joined(separator: ","))")
        program.flags = flags
        Self.addTables(program)
        let environments: [UInt64] = [1 << 61, 3 << 61]
        for (scheme, satp) in Self.schemes {
            for (access, code) in Self.accesses.prefix(4) {
                for (size, entry, address, target, least) in Self.levels where satp >> 60 >= least {
                    var state = try Self.state(program, code, mode: MachineStatus.supervisor, satp: satp)
                    state[11] = address
                    state[Place.poke] = entry
                    state[Place.watch] = entry
                    state[Place.secondPoke] = Self.page
                    state[Place.secondPokeValue] = UInt64(Instruction.ebreak) << 32 | UInt64(Instruction.ebreak)
                    var operands: [UInt64] = []
                    for top in 0..<8 as Range<UInt64> {
                        for low in size == "4 KiB" ? 0..<16 : 0..<1 as Range<UInt64> {
                            for flags in [
                                Entry.all, Entry.all & ~Entry.dirty, Entry.all & ~(Entry.dirty | Entry.accessed),
                            ] {
                                let leaf = Self.leaf(target, flags) & ~(15 << 10 & (size == "4 KiB" ? UInt64.max : 0))
                                for environment in environments {
                                    operands += [leaf | low << 10 | top << 61, environment]
                                }
                            }
                        }
                    }
                    program.add(
                        "\(access), types of \(size) of \(scheme)", state: state, result: 10,
                        flags: [.translation, .registers], places: [Place.pokeValue, Place.menvcfg], operands: operands)
                }
                // Pointers have no type.
                var state = try Self.state(program, code, mode: MachineStatus.supervisor, satp: satp)
                state[11] = Self.region
                state[Place.poke] = Self.middle
                state[Place.secondPoke] = Self.page
                state[Place.secondPokeValue] = UInt64(Instruction.ebreak) << 32 | UInt64(Instruction.ebreak)
                program.add(
                    "\(access), types of a pointer of \(scheme)", state: state, result: 10,
                    flags: [.translation, .registers], places: [Place.pokeValue, Place.menvcfg],
                    operands: (0..<8).flatMap { top in
                        environments.flatMap { [Self.pointer(Self.last) | top << 61, $0] }
                    })
            }
        }
        try program.compare(
            on: ReferenceMachine.recent,
            exceptions: Self.exceptions + [
                ReferenceException(
                    reason:
                        "QEMU sets A and D before it finds that N is reserved (privileged 1.13, 12.3.2: step 5, then 9)",
                    isRequired: false
                ) {
                    let set = $0.qemu.watched & ~$0.baton.watched
                    return $0.operands[0] >> 63 == 1 && set & ~(Entry.accessed | Entry.dirty) == 0 ? .watched : []
                }
            ])
    }

    /// Loads, stores and instructions that lie on two pages, of which either may be missing.
    @Test func crossings() throws {
        let program = ReferenceProgram("accesses on two pages")
        Self.addTables(program)
        let satp = Self.schemes[0].satp
        let first = Self.page + 0x1000
        let second = Self.page + 0x2000
        let kinds: [UInt64] = [
            Entry.all, Entry.all & ~Entry.write & ~Entry.dirty, 0, Entry.all | Entry.user,
            Entry.valid | Entry.execute | Entry.accessed,
        ]
        var accesses: [(String, UInt32)] = []
        for load in Instruction.loads where load.size > 1 {
            accesses.append((load.name, Instruction.i(0x03, load.funct3, 10, 11, 0)))
        }
        for store in Instruction.stores where store.size > 1 {
            accesses.append((store.name, Instruction.s(0x23, store.funct3, 11, 12, 0)))
        }
        accesses += [("flw", Instruction.i(0x07, 2, 10, 11, 0)), ("fsd", Instruction.s(0x27, 3, 11, 10, 0))]
        for (name, word) in accesses {
            for watched in [first + 0xff8, second] {
                var state = try Self.state(program, [word], mode: MachineStatus.supervisor, satp: satp)
                state[Place.poke] = Self.last + 8
                state[Place.secondPoke] = Self.last + 16
                state[Place.watch] = watched
                var operands: [UInt64] = []
                for a in kinds {
                    for b in kinds {
                        for offset in 0..<9 as Range<UInt64> {
                            operands += [Self.region + 0x1ff8 + offset, Self.leaf(first, a), Self.leaf(second, b)]
                        }
                    }
                }
                program.add(
                    "\(name) on two pages", state: state, result: 10, flags: [.translation, .registers],
                    places: [11, Place.pokeValue, Place.secondPokeValue], operands: operands)
            }
        }
        // An instruction on two pages.
        program.store(first + 0xff8, words: [0x0001_0001_0001 | UInt64(Instruction.addi(10, 0, 1) & 0xffff) << 48])
        program.store(
            second, words: [UInt64(Instruction.addi(10, 0, 1) >> 16) | UInt64(Instruction.ebreak) << 16 | 0x9002 << 48])
        for (mode, extra) in [(MachineStatus.supervisor, 0), (MachineStatus.user, Entry.user)] {
            var state = try Self.state(program, [Instruction.jalr(1, 11)], mode: mode, satp: satp)
            state[Place.poke] = Self.last + 8
            state[Place.secondPoke] = Self.last + 16
            var operands: [UInt64] = []
            for a in kinds {
                for b in kinds {
                    for offset in [0xff8, 0xffe] as [UInt64] {
                        operands += [
                            Self.region + 0x1000 + offset, Self.leaf(first, a ^ extra), Self.leaf(second, b ^ extra),
                        ]
                    }
                }
            }
            for delegation in [0, ReferenceTrapTests.delegated] {
                state[Place.medeleg] = delegation
                program.add(
                    "an instruction on two pages, MPP \(mode >> 11)\(delegation == 0 ? "" : ", delegated")",
                    state: state,
                    result: 10, flags: [.translation, .registers, .code],
                    places: [11, Place.pokeValue, Place.secondPokeValue], operands: operands)
            }
        }
        try program.compare(exceptions: Self.exceptions)
    }

    /// M-mode's accesses as another mode's, and what changes between two accesses.
    @Test(arguments: ReferenceMachine.all) func changes(_ reference: ReferenceMachine) throws {
        let program = ReferenceProgram("MPRV, SUM, MXR, sfence.vma and satp")
        Self.addTables(program)
        for (scheme, satp) in Self.schemes(reference) {
            for (access, code) in Self.accesses where access != "fetch" {
                // mstatus with MPRV is x13's, and x14's is without.
                let isAtomic = ["amoadd", "lr", "sc"].contains(access)
                var state = try Self.state(
                    program, [Instruction.csrrw(0, 0x300, 13)] + code + [Instruction.csrrw(0, 0x300, 14)],
                    mode: MachineStatus.machine, satp: satp)
                state[11] = Self.region
                state[14] = MachineStatus.machine | MachineStatus.floatDirty
                state[Place.poke] = Self.last
                state[Place.secondPoke] = Self.page
                state[Place.secondPokeValue] = UInt64(Instruction.ebreak) << 32 | UInt64(Instruction.ebreak)
                state[Place.watch] = Self.last
                var operands: [UInt64] = []
                for mode in [MachineStatus.user, MachineStatus.supervisor, MachineStatus.machine] {
                    for chosen in 0..<8 {
                        let bits = [MachineStatus.mprv, MachineStatus.sum, MachineStatus.mxr].enumerated()
                            .reduce(mode | MachineStatus.floatDirty) {
                                chosen >> $1.offset & 1 != 0 ? $0 | $1.element : $0
                            }
                        // Else the address is a physical one, in the PCI window.
                        let isTranslated = bits & MachineStatus.mprv != 0 && mode != MachineStatus.machine
                        if isAtomic && !isTranslated { continue }
                        for flags in stride(from: 0, to: 256, by: 2) as StrideTo<UInt64> {
                            if flags & 0x20 == 0 { operands += [bits, Self.leaf(Self.page, flags | 1)] }
                        }
                    }
                }
                program.add(
                    "\(access) with mstatus of x13, \(scheme)", state: state, result: 10,
                    flags: [.translation, .registers],
                    places: [13, Place.pokeValue], operands: operands)
            }
            // Before and after: the first load fills what an implementation caches.
            let load = Instruction.ld(10, 11)
            let again = Instruction.ld(15, 11)
            let fences: [(String, [UInt32])] = [
                ("sfence.vma", [0x1200_0073]), ("sfence.vma x11", [0x1205_8073]), ("sfence.vma x0, x16", [0x1300_0073]),
                ("sfence.vma x11, x16", [0x1305_8073]),
            ]
            for (name, fence) in fences {
                var state = try Self.state(
                    program, [load, Instruction.sd(13, 14)] + fence + [again], mode: MachineStatus.supervisor,
                    satp: satp)
                state[16] = 0
                for (size, entry, address, target, least) in Self.levels where satp >> 60 >= least {
                    state[11] = address
                    state[14] = entry
                    state[Place.poke] = entry
                    state[Place.pokeValue] = Self.leaf(target, Entry.all)
                    program.add(
                        "\(name), \(size) of \(scheme)", state: state, result: 15, flags: [.translation, .registers],
                        places: [13],
                        operands: [
                            0, Self.leaf(target, Entry.all | Entry.user),
                            Self.leaf(target, Entry.valid | Entry.execute),
                        ]
                            + (least > 8
                                ? [] : [Self.leaf(size == "4 KiB" ? Self.page + 0x1000 : 0xc000_0000, Entry.all)]))
                }
            }
            for (name, bit, flags) in [
                ("SUM", MachineStatus.sum, Entry.all | Entry.user),
                ("MXR", MachineStatus.mxr, Entry.valid | Entry.execute | Entry.accessed),
            ] {
                var state = try Self.state(
                    program, [Instruction.csrrs(0, 0x100, 13), load, Instruction.csrrc(0, 0x100, 13), again],
                    mode: MachineStatus.supervisor, satp: satp)
                state[11] = Self.region
                state[13] = bit
                state[Place.poke] = Self.last
                state[Place.pokeValue] = Self.leaf(Self.page, flags)
                program.add(
                    "\(name) set and cleared, \(scheme)", state: state, result: 10, flags: [.translation, .registers])
            }
            // Another address space, with its own number and none, and back.
            let others: [UInt64: UInt64] = [8: Self.otherRoot39, 9: Self.otherRoot48, 10: Self.otherRoot57]
            let other = (others[satp >> 60] ?? 0) >> 12
            var state = try Self.state(
                program,
                [
                    load, Instruction.csrrw(16, 0x180, 13), again, Instruction.csrrw(0, 0x180, 16),
                    Instruction.ld(17, 11),
                ],
                mode: MachineStatus.supervisor, satp: satp)
            state[11] = Self.region
            state[Place.poke] = Self.last
            state[Place.pokeValue] = Self.leaf(Self.page, Entry.all)
            program.add(
                "satp, \(scheme)", state: state, result: 15, flags: [.translation, .registers], places: [13],
                operands: [satp & (15 << 60) | 5 << 44 | other, 0, satp, 3 << 60 | other])
        }
        try program.compare(on: reference, exceptions: Self.exceptions)
    }

    private static let exceptions: [ReferenceException] = [
        ReferenceException(
            reason:
                "QEMU's AMOs read first, and set A where they may not write (privileged 1.12, 4.3.1: A may be early)",
            isRequired: false
        ) {
            $0.group.hasPrefix("amoadd") && $0.qemu.watched == $0.baton.watched | Entry.accessed ? .watched : []
        },
        ReferenceException(
            reason: "QEMU's SC without a reservation fails before it looks at the page (A: either is right)",
            versions: ReferenceException.beforeTen, isRequired: false
        ) {
            let isUntouched = $0.qemu.mcause == 3 || $0.qemu.scause == 3
            return $0.group.hasPrefix("sc") && $0.qemu.result == 1 && isUntouched ? .all : []
        },
        ReferenceException(
            reason: "QEMU's page fault for a table that is nowhere (privileged 1.12, 4.3.2, step 2: access fault)",
            versions: ReferenceException.beforeTen, isRequired: false
        ) {
            func isSofter(_ qemu: UInt64, _ baton: UInt64) -> Bool {
                [(12, 1), (13, 5), (15, 7), (13, 7)].contains { $0 == (qemu, baton) }
            }
            guard $0.group.contains("pointer of") || $0.group.contains("root of") else { return [] }
            return isSofter($0.qemu.mcause, $0.baton.mcause) ? .mcause : []
        },
    ]
}
