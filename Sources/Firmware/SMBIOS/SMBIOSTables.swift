import BatonRuntime

/// What the SMBIOS tables say of a machine by themselves.
package struct SMBIOSMachine {
    /// Of type 1, 2, 3, 4 and 17.
    package var manufacturer = "QEMU"
    /// Of types 1 and 2.
    package var product = "QEMU Virtual Machine"
    /// QEMU's name of the machine.
    package var version: String
    /// `-uuid`; nil when there is none.
    package var uuid: String?
    /// `-smp`
    package var sockets = 1, cores = 1, threads = 1
    /// The processors' family (DSP0134, table 23).
    package var processorFamily: UInt16 = 1
    /// Guest-physical addresses of RAM.
    package var memory: [Range<UInt64>]

    package init(version: String, memory: [Range<UInt64>]) {
        (self.version, self.memory) = (version, memory)
    }
}

/// SMBIOS structures (DMTF's DSP0134, 3.0), which say what the machine is: for UEFI, by fw_cfg. The same types with the
/// same contents as QEMU makes.
package struct SMBIOSTables {
    private let options: SMBIOSOptions
    private let machine: SMBIOSMachine
    /// All structures.
    package private(set) var structures: [UInt8] = []

    /// Types that are there even if nothing was said about them; others are firmware's to make.
    private static let required: Set<UInt8> = [1, 3, 4, 16, 17, 19, 32, 127]
    /// Handles of the structures that others name.
    private enum Handle {
        static let chassis: UInt16 = 0x300
        static let memoryArray: UInt16 = 0x1000
    }
    private static let largestModule: UInt64 = 16 << 30

    /// - Throws: when structures of files do not fit the machine.
    package init(_ machine: SMBIOSMachine, _ options: SMBIOSOptions) throws(VMMError) {
        (self.machine, self.options) = (machine, options)
        structures = options.structures.flatMap { $0 }
        let given = options.structures.filter { $0[0] == 4 }.count
        guard given == 0 || given == machine.sockets else {
            throw VMMError("Expected \(machine.sockets) SMBIOS Type 4 tables, got \(given) instead")
        }
        addFirmware()
        addSystem()
        addBoard()
        addChassis()
        for index in 0..<machine.sockets { addProcessor(index) }
        for (index, port) in options.ports.enumerated() { addPort(index, port) }
        addStrings()
        addMemory()
        structures += structure(32, 0x2000) { $0.put(bytes: [UInt8](repeating: 0, count: 6) + [0]) }
        structures += structure(127, 0x7f00) { _ in }
    }

    /// The entry point, `etc/smbios/smbios-anchor`: firmware fills in where the structures are, and the checksum.
    package var anchor: [UInt8] {
        // Checksum, length, version 3.0, its revision, that of the entry point, reserved.
        Array("_SM3_".utf8) + [0, 24, 3, 0, 0, 1, 0] + littleEndianBytes(UInt32(truncatingIfNeeded: structures.count))
            + [UInt8](repeating: 0, count: 8)
    }

    /// What tells these tables from others (FNV-1a).
    package var digest: UInt64 {
        structures.reduce(0xcbf2_9ce4_8422_2325) { ($0 ^ UInt64($1)) &* 0x100_0000_01b3 }
    }

    /// The files of fw_cfg.
    package func files() throws(VMMError) -> [FwCfgFile] {
        [
            try FwCfgFile("etc/smbios/smbios-anchor", anchor), try FwCfgFile("etc/smbios/smbios-tables", structures),
        ]
    }

    // MARK: Structures

    /// One structure: its fields in their order, and its strings behind.
    private struct Structure {
        var fields: [UInt8] = []
        var strings: [UInt8] = []
        private var count: UInt8 = 0

        init() {}

        mutating func put<T: FixedWidthInteger>(_ value: T) { fields += littleEndianBytes(value) }
        mutating func put(bytes: [UInt8]) { fields += bytes }
        /// A string's number, 0 for none.
        mutating func put(_ text: String?) {
            guard let text, !text.isEmpty else { return fields.append(0) }
            count &+= 1
            fields.append(count)
            strings += Array(text.utf8) + [0]
        }
    }

    /// - Returns: nothing for a structure that is another's to make.
    private func structure(_ type: UInt8, _ handle: UInt16, _ fill: (inout Structure) -> Void) -> [UInt8] {
        guard !options.isFromFile(type), options.hasFields(type) || SMBIOSTables.required.contains(type) else {
            return []
        }
        var structure = Structure()
        fill(&structure)
        return [type, UInt8(4 + structure.fields.count)] + littleEndianBytes(handle) + structure.fields
            + (structure.strings.isEmpty ? [0, 0] : structure.strings + [0])
    }

    private func text(_ type: UInt8, _ key: String, _ standard: String? = nil) -> String? {
        options.texts[type]?[key] ?? standard
    }

    /// 7.1
    private mutating func addFirmware() {
        let release = options.release ?? (0, 0)
        structures += structure(0, 0) {
            $0.put(text(0, "vendor"))
            $0.put(text(0, "version"))
            // The segment, and no size of a ROM.
            $0.put(0xe800 as UInt16)
            $0.put(text(0, "date"))
            $0.put(0 as UInt8)
            // Characteristics are not supported; a virtual machine, table 8.
            $0.put(0x08 as UInt64)
            $0.put(bytes: [0, options.isUEFI ? 0x1c : 0x14])
            $0.put(bytes: [release.major, release.minor, 0xff, 0xff])
        }
    }

    /// 7.2
    private mutating func addSystem() {
        structures += structure(1, 0x100) {
            $0.put(text(1, "manufacturer", machine.manufacturer))
            $0.put(text(1, "product", machine.product))
            $0.put(text(1, "version", machine.version))
            $0.put(text(1, "serial"))
            $0.put(bytes: SMBIOSTables.uuid(options.uuid ?? machine.uuid))
            // The power switch.
            $0.put(6 as UInt8)
            $0.put(text(1, "sku"))
            $0.put(text(1, "family"))
        }
    }

    /// The first three groups are little endian (7.2.1).
    private static func uuid(_ text: String?) -> [UInt8] {
        guard let bytes = text.flatMap(SMBIOSOptions.bytes(ofUUID:)) else { return [UInt8](repeating: 0, count: 16) }
        return bytes[0..<4].reversed() + bytes[4..<6].reversed() + bytes[6..<8].reversed() + bytes[8...]
    }

    /// 7.3
    private mutating func addBoard() {
        structures += structure(2, 0x200) {
            $0.put(text(2, "manufacturer", machine.manufacturer))
            $0.put(text(2, "product", machine.product))
            $0.put(text(2, "version", machine.version))
            $0.put(text(2, "serial"))
            $0.put(text(2, "asset"))
            // A hosting board.
            $0.put(1 as UInt8)
            $0.put(text(2, "location"))
            $0.put(Handle.chassis)
            $0.put(bytes: [0x0a, 0])
        }
    }

    /// 7.4
    private mutating func addChassis() {
        structures += structure(3, Handle.chassis) {
            $0.put(text(3, "manufacturer", machine.manufacturer))
            $0.put(1 as UInt8)
            $0.put(text(3, "version", machine.version))
            $0.put(text(3, "serial"))
            $0.put(text(3, "asset"))
            // Safe, safe, safe, security unknown; nothing of the maker's; no height, cords or parts.
            $0.put(bytes: [3, 3, 3, 2, 0, 0, 0, 0, 0, 0, 0, 0])
            $0.put(text(3, "sku"))
        }
    }

    /// 7.5
    private mutating func addProcessor(_ index: Int) {
        let number = String(index, radix: 16)
        let designation = (text(4, "sock_pfx") ?? "CPU") + (number.utf8.count < 2 ? " " : "") + number
        let family = options.family ?? machine.processorFamily
        func byte(_ count: Int) -> UInt8 { count > 255 ? 0xff : UInt8(count) }
        let cores = machine.cores, threads = machine.cores * machine.threads
        structures += structure(4, 0x400 &+ UInt16(truncatingIfNeeded: index)) {
            $0.put(designation)
            // A central processor, of a family that may be told further below.
            $0.put(bytes: [3, family > 0xfd ? 0xfe : UInt8(family)])
            $0.put(text(4, "manufacturer", machine.manufacturer))
            $0.put(options.processorID ?? 0)
            $0.put(text(4, "version", machine.version))
            $0.put(bytes: [0, 0, 0])
            $0.put(options.maximumSpeed)
            $0.put(options.currentSpeed)
            // Populated and enabled; upgraded in other ways; no caches.
            $0.put(bytes: [0x41, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff])
            $0.put(text(4, "serial"))
            $0.put(text(4, "asset"))
            $0.put(text(4, "part"))
            $0.put(bytes: [byte(cores), byte(cores), byte(threads)])
            $0.put(2 as UInt16)
            $0.put(family)
            $0.put(UInt16(truncatingIfNeeded: cores))
            $0.put(UInt16(truncatingIfNeeded: cores))
            $0.put(UInt16(truncatingIfNeeded: threads))
        }
    }

    /// 7.9
    private mutating func addPort(_ index: Int, _ port: (texts: SMBIOSOptions.Texts, connector: UInt8, port: UInt8)) {
        structures += structure(8, 0x800 &+ UInt16(truncatingIfNeeded: index)) {
            $0.put(port.texts["internal_reference"])
            // The connector inside is none.
            $0.put(0 as UInt8)
            $0.put(port.texts["external_reference"])
            $0.put(bytes: [port.connector, port.port])
        }
    }

    /// 7.12
    private mutating func addStrings() {
        structures += structure(11, 0xe00) {
            $0.put(UInt8(truncatingIfNeeded: options.strings.count))
            for text in options.strings { $0.strings += Array(text.utf8) + [0] }
        }
    }

    /// 7.17, 7.18 and 7.20
    private mutating func addMemory() {
        let size = machine.memory.reduce(0) { $0 + ($1.upperBound - $1.lowerBound) }
        let modules = Int((size + SMBIOSTables.largestModule - 1) / SMBIOSTables.largestModule)
        structures += structure(16, Handle.memoryArray) {
            let kibibytes = (size + 1023) / 1024
            $0.put(bytes: [1, 3, 6])
            $0.put(UInt32(min(kibibytes, 0x8000_0000)))
            $0.put(0xfffe as UInt16)
            $0.put(UInt16(truncatingIfNeeded: modules))
            $0.put(kibibytes < 0x8000_0000 ? 0 : size)
        }
        for index in 0..<modules {
            let rest = size - UInt64(index) * SMBIOSTables.largestModule
            addModule(index, mebibytes: (min(rest, SMBIOSTables.largestModule) + (1 << 20) - 1) >> 20)
        }
        for (index, range) in machine.memory.enumerated() {
            structures += structure(19, 0x1300 &+ UInt16(truncatingIfNeeded: index)) {
                let (first, last) = (range.lowerBound / 1024, (range.upperBound - 1) / 1024)
                let isLow = last < UInt64(UInt32.max)
                $0.put(isLow ? UInt32(first) : UInt32.max)
                $0.put(isLow ? UInt32(last) : UInt32.max)
                $0.put(Handle.memoryArray)
                $0.put(1 as UInt8)
                $0.put(isLow ? 0 : range.lowerBound)
                $0.put(isLow ? 0 : range.upperBound - 1)
            }
        }
    }

    private mutating func addModule(_ index: Int, mebibytes: UInt64) {
        structures += structure(17, 0x1100 &+ UInt16(truncatingIfNeeded: index)) {
            $0.put(Handle.memoryArray)
            // No information about errors, widths unknown.
            $0.put(bytes: [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff])
            $0.put(UInt16(min(mebibytes, 0x7fff)))
            // A DIMM that is in no set.
            $0.put(bytes: [9, 0])
            $0.put("\(text(17, "loc_pfx") ?? "DIMM") \(index)")
            $0.put(text(17, "bank"))
            // RAM, of another kind.
            $0.put(bytes: [7, 2, 0])
            $0.put(options.memorySpeed)
            $0.put(text(17, "manufacturer", machine.manufacturer))
            $0.put(text(17, "serial"))
            $0.put(text(17, "asset"))
            $0.put(text(17, "part"))
            $0.put(0 as UInt8)
            $0.put(mebibytes < 0x7fff ? 0 : UInt32(mebibytes))
            $0.put(options.memorySpeed)
            // Voltages unknown.
            $0.put(bytes: [0, 0, 0, 0, 0, 0])
        }
    }
}
