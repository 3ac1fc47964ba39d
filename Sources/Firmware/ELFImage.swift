import BatonRuntime

/// An executable ELF file, little endian, of 32 or 64 bits (gABI, "Object Files").
package struct ELFImage {
    /// Bytes of the file for one address, followed by zeroes.
    package struct Segment {
        /// Guest-physical.
        package var address: UInt64
        package var content: Range<Int>
        /// Bytes in memory; at least `content.count`.
        package var memorySize: UInt64

        /// It does not wrap: see `ELFImage.init`.
        package init(address: UInt64, content: Range<Int>, memorySize: UInt64) {
            (self.address, self.content, self.memorySize) = (address, content, memorySize)
        }

        package var range: Range<UInt64> { address..<address + memorySize }
    }

    /// A file's first bytes.
    package static let magic: [UInt8] = [0x7f, 0x45, 0x4c, 0x46]
    /// Machines (e_machine).
    package static let x86: UInt16 = 3
    package static let x86_64: UInt16 = 62
    package static let riscv: UInt16 = 243

    private static let maxHeaders = 1024
    private static let maxNotes = 4096
    private static let what = "the ELF file"

    package let file: FileBytes
    package private(set) var segments: [Segment] = []
    private var noteSegments: [(content: Range<Int>, alignment: Int)] = []
    package let is64Bit: Bool
    /// The address of the first instruction.
    package private(set) var entry: UInt64 = 0

    /// Where the fields of a program header are, which lie differently in the two sizes.
    private struct HeaderLayout {
        var size: Int
        var offset: Int
        var physicalAddress: Int
        var fileSize: Int
        var memorySize: Int
        var alignment: Int

        static let of32 = HeaderLayout(
            size: 32, offset: 4, physicalAddress: 12, fileSize: 16, memorySize: 20, alignment: 28)
        static let of64 = HeaderLayout(
            size: 56, offset: 8, physicalAddress: 24, fileSize: 32, memorySize: 40, alignment: 48)
    }

    /// Checks a file, whose machine is known.
    /// - Parameter fits: whether so many bytes at an address lie in guest memory, as every segment must.
    package init(_ file: FileBytes, fits: (_ address: UInt64, _ size: UInt64) -> Bool) throws(VMMError) {
        self.file = file
        let size = try file.field(4, UInt8.self, of: ELFImage.what)
        guard size == 1 || size == 2 else { throw VMMError("the ELF file is neither of 32 nor of 64 bits") }
        is64Bit = size == 2
        let kind = try file.field(16, UInt16.self, of: ELFImage.what)
        guard kind == 2 || kind == 3 else { throw VMMError("the ELF file is of type \(kind), not executable") }
        entry = try word(24)
        try readHeaders(fits)
        guard !segments.isEmpty else { throw VMMError("the ELF file has nothing to load") }
        try refuseOverlaps()
    }

    /// A number of 4 or 8 bytes, as the file is of 32 or 64 bits.
    private func word(_ offset: Int) throws(VMMError) -> UInt64 {
        is64Bit
            ? try file.field(offset, UInt64.self, of: ELFImage.what)
            : UInt64(try file.field(offset, UInt32.self, of: ELFImage.what))
    }

    private mutating func readHeaders(_ fits: (UInt64, UInt64) -> Bool) throws(VMMError) {
        let layout = is64Bit ? HeaderLayout.of64 : .of32
        let table = try word(is64Bit ? 32 : 28)
        let entrySize = Int(try file.field(is64Bit ? 54 : 42, UInt16.self, of: ELFImage.what))
        let count = Int(try file.field(is64Bit ? 56 : 44, UInt16.self, of: ELFImage.what))
        guard count <= ELFImage.maxHeaders else {
            throw VMMError("the ELF file has \(count) program headers, more than \(ELFImage.maxHeaders)")
        }
        guard entrySize >= layout.size || count == 0 else {
            throw VMMError("the ELF file has program headers of \(entrySize) bytes")
        }
        guard let start = Int(exactly: table), count * entrySize <= file.count, start <= file.count - count * entrySize
        else { throw VMMError("the ELF file is truncated") }
        for index in 0..<count {
            let header = start + index * entrySize
            let kind = try file.field(header, UInt32.self, of: ELFImage.what)
            let (load, note): (UInt32, UInt32) = (1, 4)
            guard kind == load || kind == note else { continue }
            let fileSize = try word(header + layout.fileSize)
            guard let from = Int(exactly: try word(header + layout.offset)), let length = Int(exactly: fileSize),
                from <= file.count, length <= file.count - from
            else { throw VMMError("segment \(index) of the ELF file is truncated") }
            if kind == note {
                // Other alignments than 8 mean 4 (gABI, "Note Section").
                let alignment = try word(header + layout.alignment) == 8 ? 8 : 4
                noteSegments.append((from..<from + length, alignment))
                continue
            }
            let memorySize = try word(header + layout.memorySize)
            guard memorySize > 0 else { continue }
            guard fileSize <= memorySize else {
                throw VMMError("segment \(index) of the ELF file is larger in the file than in memory")
            }
            let address = try word(header + layout.physicalAddress)
            guard !address.addingReportingOverflow(memorySize).overflow, fits(address, memorySize) else {
                throw VMMError(
                    "segment \(index) of the ELF file (\(memorySize) bytes at \(Hex(address))) does not fit into "
                        + "guest memory",
                    hint: "Give the guest more memory with -m.")
            }
            segments.append(Segment(address: address, content: from..<from + length, memorySize: memorySize))
        }
    }

    private func refuseOverlaps() throws(VMMError) {
        let sorted = segments.sorted { $0.address < $1.address }
        for (one, next) in zip(sorted, sorted.dropFirst()) where next.address < one.range.upperBound {
            throw VMMError("segments of the ELF file overlap at \(Hex(next.address))")
        }
    }

    /// The content of the first note with this name and type; nil when there is none.
    package func note(_ name: String, type wanted: UInt32) throws(VMMError) -> Range<Int>? {
        var left = ELFImage.maxNotes
        for (content, alignment) in noteSegments {
            func padded(_ size: UInt32) -> Int { (Int(size) + alignment - 1) / alignment * alignment }
            var place = content.lowerBound
            while content.upperBound - place >= 12, left > 0 {
                left -= 1
                let nameSize = try file.field(place, UInt32.self, of: ELFImage.what)
                let contentSize = try file.field(place + 4, UInt32.self, of: ELFImage.what)
                let type = try file.field(place + 8, UInt32.self, of: ELFImage.what)
                let start = place + 12 + padded(nameSize)
                let end = start + Int(contentSize)
                guard end <= content.upperBound else { throw VMMError("a note of the ELF file is truncated") }
                if type == wanted, Int(nameSize) == name.utf8.count + 1,
                    file.has(Array(name.utf8) + [0], at: place + 12)
                {
                    return start..<end
                }
                place = start + padded(contentSize)
            }
        }
        return nil
    }
}
