import BatonRuntime
import Firmware

/// All ACPI tables as two blobs: the tables, and the root that points to them (RSDP).
///
/// Pointers in them are offsets into the tables, and checksums are 0, until they have their places: a direct start
/// knows these, and firmware, which chooses them itself, gets a list of what is to be done.
public struct ACPITables {
    /// `etc/acpi/tables`.
    public private(set) var tables: [UInt8] = []
    /// `etc/acpi/rsdp`.
    public private(set) var rsdp: [UInt8] = []

    enum Blob: String {
        case tables = "etc/acpi/tables"
        case rsdp = "etc/acpi/rsdp"
    }

    /// What is to be done once the places are known, in order.
    enum Step {
        /// Adds the tables' address to a pointer of 4 or 8 bytes.
        case pointer(Blob, at: Int, size: Int)
        /// Stores what makes the sum of a range 0.
        case checksum(Blob, at: Int, of: Range<Int>)
    }

    private(set) var steps: [Step] = []

    /// Of the tables, as a FACS would need it.
    private static let alignment = 64
    private static let rsdpAlignment = 16

    public init(_ configuration: ACPIConfiguration) {
        let dsdt = add(configuration.dsdt)
        var fadt = configuration.fadt.bytes
        fadt.store(UInt32(dsdt), at: ACPIConfiguration.dsdtPointer)
        fadt.store(UInt64(dsdt), at: ACPIConfiguration.extendedDSDTPointer)
        var others = [
            add(fadt, pointers: [(ACPIConfiguration.dsdtPointer, 4), (ACPIConfiguration.extendedDSDTPointer, 8)]),
            add(configuration.madt),
        ]
        if let mcfg = configuration.mcfg { others.append(add(mcfg)) }
        let list = ACPITable("XSDT", revision: 1, body: others.flatMap { littleEndianBytes(UInt64($0)) })
        let xsdt = add(list.bytes, pointers: others.indices.map { (ACPITable.headerSize + 8 * $0, 8) })

        // RSDP of ACPI 2: its first 20 bytes have a checksum of their own.
        let (checksum, revision, noRSDT): (UInt8, UInt8, UInt32) = (0, 2, 0)
        let (xsdtPointer, extendedChecksum, size) = (24, 32, 36)
        rsdp = Array("RSD PTR ".utf8) + [checksum] + ACPITable.oemID + [revision]
        rsdp += littleEndianBytes(noRSDT) + littleEndianBytes(UInt32(size)) + littleEndianBytes(UInt64(xsdt))
        rsdp += [checksum, 0, 0, 0]
        steps += [
            .pointer(.rsdp, at: xsdtPointer, size: 8), .checksum(.rsdp, at: 8, of: 0..<20),
            .checksum(.rsdp, at: extendedChecksum, of: 0..<size),
        ]
    }

    private mutating func add(_ table: ACPITable) -> Int { add(table.bytes, pointers: []) }

    /// - Returns: the table's offset.
    private mutating func add(_ table: [UInt8], pointers: [(offset: Int, size: Int)]) -> Int {
        tables += [UInt8](repeating: 0, count: (8 - tables.count % 8) % 8)
        let start = tables.count
        tables += table
        steps += pointers.map { .pointer(.tables, at: start + $0.offset, size: $0.size) }
        steps.append(.checksum(.tables, at: start + ACPITable.checksumOffset, of: start..<tables.count))
        return start
    }

    // MARK: Direct start

    /// Both blobs in one piece, final.
    /// - Parameter address: a multiple of 64, below 4 GiB.
    /// - Returns: the bytes for `address`, and the root's address.
    func placed(at address: UInt64) -> (bytes: [UInt8], rsdp: UInt64) {
        let room = (rsdp.count + ACPITables.alignment - 1) / ACPITables.alignment * ACPITables.alignment
        var bytes = rsdp + [UInt8](repeating: 0, count: room - rsdp.count) + tables
        func start(_ blob: Blob) -> Int { blob == .rsdp ? 0 : room }
        for step in steps {
            switch step {
            case .pointer(let blob, let offset, let size):
                let place = start(blob) + offset
                var value: UInt64 = 0
                for index in (0..<size).reversed() { value = value << 8 | UInt64(bytes[place + index]) }
                let target = littleEndianBytes(value + address + UInt64(room))
                bytes.replaceSubrange(place..<place + size, with: target.prefix(size))
            case .checksum(let blob, let offset, let range):
                let whole = start(blob) + range.lowerBound..<start(blob) + range.upperBound
                bytes[start(blob) + offset] = ACPITable.checksum(bytes[whole])
            }
        }
        return (bytes, address)
    }

    // MARK: Firmware

    /// The files of fw_cfg that firmware makes its tables from.
    package func firmwareFiles() throws(VMMError) -> [FwCfgFile] {
        [
            try FwCfgFile(Blob.tables.rawValue, tables), try FwCfgFile(Blob.rsdp.rawValue, rsdp),
            try FwCfgFile("etc/table-loader", loaderCommands),
        ]
    }

    /// `etc/table-loader`: commands of 128 bytes (QEMU's hw/acpi/bios-linker-loader.c).
    var loaderCommands: [UInt8] {
        let (allocate, addPointer, addChecksum): (UInt32, UInt32, UInt32) = (1, 2, 3)
        let (anywhere, below1MiB): (UInt8, UInt8) = (1, 2)
        var commands: [UInt8] = []
        func command(_ kind: UInt32, _ fields: [UInt8]) {
            let bytes = littleEndianBytes(kind) + fields
            commands += bytes + [UInt8](repeating: 0, count: 128 - bytes.count)
        }
        func name(_ blob: Blob) -> [UInt8] {
            let text = Array(blob.rawValue.utf8)
            return text + [UInt8](repeating: 0, count: 56 - text.count)
        }
        // A blob is allocated before anything else is done with it.
        command(allocate, name(.rsdp) + littleEndianBytes(UInt32(ACPITables.rsdpAlignment)) + [below1MiB])
        command(allocate, name(.tables) + littleEndianBytes(UInt32(ACPITables.alignment)) + [anywhere])
        for step in steps {
            switch step {
            case .pointer(let blob, let offset, let size):
                command(
                    addPointer, name(blob) + name(.tables) + littleEndianBytes(UInt32(offset)) + [UInt8(size)])
            case .checksum(let blob, let offset, let range):
                let numbers = [offset, range.lowerBound, range.count].flatMap { littleEndianBytes(UInt32($0)) }
                command(addChecksum, name(blob) + numbers)
            }
        }
        return commands
    }
}
