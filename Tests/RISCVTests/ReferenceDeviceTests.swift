import Testing

/// Loads and stores of each width at each device of the board, against QEMU: which are answered, with what, and which
/// are access faults.
@Suite("QEMU as reference: devices", .enabled(if: ReferenceMachine.absence == nil, "\(ReferenceMachine.absence ?? "")"))
struct ReferenceDeviceTests {
    private static let widths: [UInt64] = [1, 2, 4, 8]

    /// Loads of every width from some addresses, where they are aligned.
    /// - Parameter compared: what must be equal.
    private static func load(
        _ program: ReferenceProgram, _ name: String, _ addresses: [UInt64],
        compared: ReferenceRecord.Fields = .all
    ) {
        for (width, funct3) in zip(widths, [4, 5, 6, 3] as [UInt32]) {
            program.add(
                "\(name): load of \(width)", code: [Instruction.i(0x03, funct3, 10, 11, 0)], result: 10,
                compared: compared, places: [11], operands: addresses.filter { $0 % width == 0 })
        }
    }

    /// Stores of a value in every width.
    private static func store(
        _ program: ReferenceProgram, _ name: String, _ value: UInt64, _ addresses: [UInt64], widths: [UInt64] = widths
    ) {
        for (index, width) in Self.widths.enumerated() where widths.contains(width) {
            var state = ReferenceProgram.State()
            state[12] = value
            program.add(
                "\(name): store of \(width)", code: [Instruction.s(0x23, UInt32(index), 11, 12, 0)], state: state,
                places: [11], operands: addresses.filter { $0 % width == 0 })
        }
    }

    /// The first bytes of some registers, and what is behind the last.
    private static func around(_ start: UInt64, _ offsets: [UInt64]) -> [UInt64] {
        offsets.flatMap { [$0, $0 + 1, $0 + 2, $0 + 4] }.map { start + $0 }
    }

    /// The time is no one's but the machine's.
    private static let withoutResult = ReferenceRecord.Fields.all.subtracting([.result, .x])

    @Test func board() throws {
        let program = ReferenceProgram("devices of the board")
        program.options = ["-device", "virtio-rng-device"]
        program.addTimersOff()
        let registers: [(name: String, addresses: [UInt64])] = [
            ("finisher", Self.around(0x10_0000, [0, 8, 0xff8])),
            ("rtc", Self.around(0x10_1000, [8, 0x10, 0x18, 0x20, 0xff8])),
            ("msip", Self.around(0x200_0000, [0, 8, 0x100, 0x3ff8])),
            ("mtimecmp", Self.around(0x200_4000, [0, 8, 0x100, 0x7ff0])),
            ("behind mtime", Self.around(0x200_c000, [0, 0x3ff8])),
            ("plic", Self.around(0xc00_0000, [0, 8, 0x1000, 0x2000, 0x2080, 0x20_0000, 0x20_1000, 0x5f_fff8])),
            ("uart", (0..<8).map { 0x1000_0000 + $0 }),
            ("behind uart", Self.around(0x1000_0000, [8, 0x80, 0xf8])),
            ("slot without a device", Self.around(0x1000_1000, Array(stride(from: 0, to: 0x200, by: 8)))),
            ("slot with a device", Self.around(0x1000_8000, Array(stride(from: 0, to: 0x100, by: 8)))),
            ("behind slots", Self.around(0x1000_1000, [0x200, 0xff8, 0x7200, 0x7ff8])),
            ("nothing", Self.around(0x4_0000_0000 - 0x1000, [0]) + [0, 0xff8, 0x11_0000, 0x1000_9000, 0x1800_0000]),
        ]
        for (name, addresses) in registers { Self.load(program, name, addresses) }
        Self.load(program, "time of day", Self.around(0x10_1000, [0]), compared: Self.withoutResult)
        Self.load(program, "mtime", Self.around(0x200_0000, [0xbff8]), compared: Self.withoutResult)
        // Zero does nothing to the finisher, and takes all else where its driver would begin.
        for (name, addresses) in registers { Self.store(program, name, 0, addresses) }
        Self.store(program, "finisher", 0x1_0000_5554, [0x10_0000, 0x10_0004])
        for (name, addresses) in registers { Self.load(program, name + ", then", addresses) }
        try program.compare(exceptions: [
            ReferenceException(
                reason: "QEMU's QueueNumMax is 1024 for each queue that there is, Baton's is the queue's",
                versions: ReferenceException.beforeTen
            ) {
                let holdsMaximum = [0x1000_8030, 0x1000_8034, 0x1000_8036].contains($0.operands.first ?? 0)
                return $0.group.hasPrefix("slot with a device") && holdsMaximum ? [.result, .x] : []
            },
            ReferenceException(
                reason: "QEMU has no SHMBase, which is all ones for what is not there (virtio 1.3, 4.2.2)"
            ) {
                let isBase = [0x1000_80b8, 0x1000_80bc].contains($0.operands.first ?? 0)
                return $0.group.hasPrefix("slot with a device") && isBase ? [.result, .x] : []
            },
        ])
    }

    /// Configuration space and windows of the host bridge, and the BARs of a virtio device there.
    @Test func pci() throws {
        let program = ReferenceProgram("PCI")
        program.options = ["-device", "virtio-rng-pci,addr=1.0,disable-legacy=on"]
        let (bridge, device) = (0x3000_0000 as UInt64, 0x3000_8000 as UInt64)
        Self.load(program, "host bridge", Self.around(bridge, [0, 8, 0x10, 0x28, 0x38, 0x40, 0x100, 0xff8]))
        Self.load(program, "no function", Self.around(0x3001_0000, [0, 8, 0xff8]))
        Self.load(program, "no bus", Self.around(0x3010_0000, [0]) + Self.around(0x3fff_f000, [0xff8]))
        Self.load(program, "identity", Self.around(device, [0, 8, 0x28]))
        let (table, common) = (0x4000_0000 as UInt64, 0x4_0000_0000 as UInt64)
        for (register, value) in [(0x14, table), (0x20, common & 0xffff_ffff), (0x24, common >> 32), (4, 2)]
            as [(UInt64, UInt64)]
        {
            Self.store(program, "place BARs", value, [device + register], widths: [4])
        }
        let parts: [(name: String, addresses: [UInt64])] = [
            ("MSI-X table", Self.around(table, [0, 8, 0x10])), ("MSI-X pending bits", Self.around(table, [0x800])),
            ("common configuration", Self.around(common, [0x20, 0x28, 0x30])),
            ("interrupt status", Self.around(common, [0x1000])),
            ("notification", Self.around(common, [0x3000])),
        ]
        for (name, addresses) in parts { Self.load(program, name, addresses) }
        for (name, addresses) in parts { Self.store(program, name, 0x1234_5678_9abc_def0, addresses) }
        for (name, addresses) in parts { Self.load(program, name + ", then", addresses) }
        Self.load(program, "windows", Self.around(0x5000_0000, [0]) + Self.around(0x300_0000, [0, 0xfff8]))
        Self.store(program, "windows", 0, Self.around(0x5000_0000, [0]) + Self.around(0x300_0000, [0, 0xfff8]))
        try program.compare(exceptions: [
            ReferenceException(reason: "QEMU keeps the reserved bits of a vector's control (PCI 3.0, 6.8.2.9)") {
                $0.group.hasPrefix("MSI-X table, then") && $0.qemu.result ^ $0.baton.result > 1 ? [.result, .x] : []
            },
            ReferenceException(
                reason: "a part of a field of the common configuration, which a driver may not ask for (virtio 1.3, "
                    + "4.1.3.1), is 0 in Baton"
            ) {
                let isPart = $0.group.hasSuffix("load of 1") || $0.group.hasSuffix("load of 2")
                return $0.group.hasPrefix("common configuration") && isPart ? [.result, .x] : []
            },
        ])
    }

    @Test func messageInterrupts() throws {
        let program = ReferenceProgram("APLIC and IMSIC")
        program.machine = ",aia=aplic-imsic"
        let registers: [(name: String, addresses: [UInt64])] = [
            ("APLIC of M", Self.around(0xc00_0000, [0, 8, 0x1bc0, 0x1c00, 0x1d00, 0x3000, 0x7ff8])),
            ("APLIC of S", Self.around(0xd00_0000, [0, 8, 0x1bc0, 0x1c00, 0x1d00, 0x3000, 0x7ff8])),
            ("behind APLIC", Self.around(0xc00_0000, [0x8000])),
            ("IMSIC of M", Self.around(0x2400_0000, [0, 8, 0xff8, 0x1000])),
            ("IMSIC of S", Self.around(0x2800_0000, [0, 8, 0xff8, 0x1000])),
        ]
        for (name, addresses) in registers { Self.load(program, name, addresses) }
        for (name, addresses) in registers { Self.store(program, name, 0, addresses) }
        for (name, addresses) in registers { Self.load(program, name + ", then", addresses) }
        try program.compare(exceptions: [
            ReferenceException(
                reason: "QEMU's APLIC has a source pending that is inactive (AIA 1.0, 4.5.2: its bit is zero)",
                versions: ReferenceException.beforeTen,
                // It is not there in every run.
                isRequired: false
            ) {
                let isPending = $0.operands == [0xc00_1c00] || $0.operands == [0xd00_1c00]
                return $0.group.hasSuffix(": load of 4") && isPending ? [.result, .x] : []
            }
        ])
    }
}
