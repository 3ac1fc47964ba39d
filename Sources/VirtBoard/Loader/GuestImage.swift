import BatonRuntime
import Firmware

/// A kernel or firmware file: what of it goes where.
struct GuestImage {
    /// Bytes of the file for one address, followed by zeroes.
    typealias Piece = ELFImage.Segment

    enum Format: Equatable { case elf, linuxImage, flat }

    private let file: FileBytes
    let format: Format
    private(set) var pieces: [Piece] = []
    private(set) var entry: UInt64 = 0

    /// The first address after the image.
    var end: UInt64 { pieces.map { $0.address &+ $0.memorySize }.max() ?? entry }

    /// Recognises a file and places it.
    /// - Parameters:
    ///   - base: where a file without addresses of its own goes.
    ///   - memory: guest RAM; every piece must lie in it.
    init(_ file: FileBytes, base: UInt64, memory: Range<UInt64>) throws(VMMError) {
        self.file = file
        guard file.count > 0 else { throw VMMError("the file is empty") }
        if file.has(ELFImage.magic, at: 0) {
            format = .elf
            try placeELF()
        } else {
            var memorySize = UInt64(file.count)
            if file.fieldIfAny(56, UInt32.self) == 0x0543_5352 {
                format = .linuxImage
                memorySize = max(memorySize, try linuxImageSize())
            } else {
                format = .flat
            }
            pieces = [Piece(address: base, content: 0..<file.count, memorySize: memorySize)]
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

    /// The memory that a Linux `Image` needs, bss included
    /// (Documentation/arch/riscv/boot-image-header.rst).
    private func linuxImageSize() throws(VMMError) -> UInt64 {
        guard let size = file.fieldIfAny(16, UInt64.self),
            let flags = file.fieldIfAny(24, UInt64.self)
        else { throw VMMError("the Image header is truncated") }
        guard flags & 1 == 0 else { throw VMMError("big-endian kernels are not supported") }
        return size
    }

    /// ELF-64 for RISC-V: its segments go to their physical addresses.
    private mutating func placeELF() throws(VMMError) {
        func field<T: FixedWidthInteger>(_ offset: Int, _ type: T.Type) throws(VMMError) -> T {
            try file.field(offset, type, of: "the ELF file")
        }
        guard try field(4, UInt8.self) == 2 else { throw VMMError("the ELF file is not 64-bit") }
        guard try field(5, UInt8.self) == 1 else { throw VMMError("the ELF file is not little endian") }
        let machine = try field(18, UInt16.self)
        guard machine == ELFImage.riscv else {
            throw VMMError("the ELF file is for machine \(machine), not RISC-V (\(ELFImage.riscv))")
        }
        // All pieces are compared with memory below.
        let elf = try ELFImage(file) { _, _ in true }
        entry = elf.entry
        pieces = elf.segments
    }

    /// Stores the image.
    func load(into space: AddressSpace, what: String) throws(VMMError) {
        for piece in pieces {
            var failure: VMMError?
            file.bytes.withUnsafeBytes {
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
            if format == .elf, zeroes > 0 { _ = space.clear(start, length: zeroes) }
        }
    }
}
