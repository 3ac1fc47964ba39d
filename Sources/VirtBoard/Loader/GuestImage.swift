import BatonRuntime

/// A kernel or firmware file: what of it goes where.
struct GuestImage {
    /// Bytes of the file for one address, followed by zeroes.
    struct Piece {
        /// Guest-physical address.
        var address: UInt64
        var content: Range<Int>
        /// Bytes in memory; at least `content.count`.
        var memorySize: UInt64
    }

    enum Format: Equatable { case elf, linuxImage, flat }

    private static let maxSegments = 1024

    let bytes: [UInt8]
    let format: Format
    private(set) var pieces: [Piece] = []
    private(set) var entry: UInt64 = 0

    /// The first address after the image.
    var end: UInt64 { pieces.map { $0.address &+ $0.memorySize }.max() ?? entry }

    /// Recognises a file and places it.
    /// - Parameters:
    ///   - base: where a file without addresses of its own goes.
    ///   - memory: guest RAM; every piece must lie in it.
    init(_ bytes: [UInt8], base: UInt64, memory: Range<UInt64>) throws(VMMError) {
        self.bytes = bytes
        guard !bytes.isEmpty else { throw VMMError("the file is empty") }
        if bytes.starts(with: [0x7f, 0x45, 0x4c, 0x46]) {
            format = .elf
            try parseELF()
        } else {
            var memorySize = UInt64(bytes.count)
            if GuestImage.integer(bytes, 56, UInt32.self) == 0x0543_5352 {
                format = .linuxImage
                memorySize = max(memorySize, try linuxImageSize())
            } else {
                format = .flat
            }
            pieces = [Piece(address: base, content: 0..<bytes.count, memorySize: memorySize)]
            entry = base
        }
        for piece in pieces {
            guard memory.contains(piece.address), piece.memorySize <= memory.upperBound - piece.address else {
                throw VMMError(
                    "\(piece.memorySize) bytes at \(Hex(piece.address)) do not fit into guest memory "
                        + "(\(Hex(memory.lowerBound)) to \(Hex(memory.upperBound)))",
                    hint: "Give the guest more memory with -m.")
            }
        }
    }

    private static func integer<T: FixedWidthInteger>(_ bytes: [UInt8], _ offset: Int, _ type: T.Type) -> T? {
        guard offset >= 0, offset <= bytes.count - MemoryLayout<T>.size else { return nil }
        return bytes.withUnsafeBytes { T(littleEndian: $0.loadUnaligned(fromByteOffset: offset, as: T.self)) }
    }

    /// The memory that a Linux `Image` needs, bss included
    /// (Documentation/arch/riscv/boot-image-header.rst).
    private func linuxImageSize() throws(VMMError) -> UInt64 {
        guard let size = GuestImage.integer(bytes, 16, UInt64.self),
            let flags = GuestImage.integer(bytes, 24, UInt64.self)
        else { throw VMMError("the Image header is truncated") }
        guard flags & 1 == 0 else { throw VMMError("big-endian kernels are not supported") }
        return size
    }

    /// ELF-64, little endian, EM_RISCV: PT_LOAD segments to their physical
    /// addresses.
    private mutating func parseELF() throws(VMMError) {
        func field<T: FixedWidthInteger>(_ offset: Int, _ type: T.Type) throws(VMMError) -> T {
            guard let value = GuestImage.integer(bytes, offset, type) else {
                throw VMMError("the ELF file is truncated")
            }
            return value
        }
        guard try field(4, UInt8.self) == 2 else { throw VMMError("the ELF file is not 64-bit") }
        guard try field(5, UInt8.self) == 1 else { throw VMMError("the ELF file is not little endian") }
        let machine = try field(18, UInt16.self)
        guard machine == 243 else { throw VMMError("the ELF file is for machine \(machine), not RISC-V (243)") }
        let kind = try field(16, UInt16.self)
        guard kind == 2 || kind == 3 else { throw VMMError("the ELF file is of type \(kind), not executable") }
        entry = try field(24, UInt64.self)
        let table = try field(32, UInt64.self)
        let entrySize = Int(try field(54, UInt16.self))
        let count = Int(try field(56, UInt16.self))
        guard count <= GuestImage.maxSegments else {
            throw VMMError("the ELF file has \(count) program headers, more than \(GuestImage.maxSegments)")
        }
        guard entrySize >= 56 || count == 0 else {
            throw VMMError("the ELF file has program headers of \(entrySize) bytes")
        }
        guard let start = Int(exactly: table), start <= bytes.count - min(bytes.count, count * entrySize) else {
            throw VMMError("the ELF file is truncated")
        }
        for index in 0..<count {
            let header = start + index * entrySize
            guard try field(header, UInt32.self) == 1 else { continue }
            let offset = try field(header + 8, UInt64.self)
            let address = try field(header + 24, UInt64.self)
            let fileSize = try field(header + 32, UInt64.self)
            let memorySize = try field(header + 40, UInt64.self)
            guard memorySize > 0 else { continue }
            guard fileSize <= memorySize else {
                throw VMMError("segment \(index) of the ELF file is larger in the file than in memory")
            }
            guard let from = Int(exactly: offset), let length = Int(exactly: fileSize), from <= bytes.count,
                length <= bytes.count - from
            else { throw VMMError("segment \(index) of the ELF file is truncated") }
            pieces.append(Piece(address: address, content: from..<from + length, memorySize: memorySize))
        }
        guard !pieces.isEmpty else { throw VMMError("the ELF file has nothing to load") }
    }

    /// Stores the image.
    func load(into space: AddressSpace, what: String) throws(VMMError) {
        for piece in pieces {
            var failure: VMMError?
            bytes.withUnsafeBytes {
                do throws(VMMError) {
                    try space.write(UnsafeRawBufferPointer(rebasing: $0[piece.content]), at: piece.address, what: what)
                } catch {
                    failure = error
                }
            }
            if let failure { throw failure }
            let zeroes = piece.memorySize - UInt64(piece.content.count)
            let start = piece.address + UInt64(piece.content.count)
            // A flat image's bss is the kernel's own to clear.
            if format == .elf, zeroes > 0, let host = space.dma(start, length: zeroes, writing: true) {
                host.initializeMemory(as: UInt8.self, repeating: 0, count: Int(zeroes))
                space.didWrite(start, length: zeroes)
            }
        }
    }
}
