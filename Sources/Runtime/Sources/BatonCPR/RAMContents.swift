import BatonBase
import BatonMachine
import CBaton
import Glibc

/// The contents of volatile RAM in a checkpoint file.
///
/// They follow the sections, each block at a multiple of 4096, as the block
/// itself is in memory. Pages of zeroes are holes in the file. The section
/// `ram-contents` says where each block is, and its CRC-32C.
enum RAMContents {
    static let sectionName = "ram-contents"
    private static let page = 4096

    /// Where one block is in a file.
    fileprivate struct Place {
        var block: RAMBlock
        var offset: Int
        var crc: UInt32
    }

    /// Adds the section that describes the contents of `blocks`.
    ///
    /// Offsets are counted from the end of the sections, as their length is
    /// not known before this section is in it.
    static func describe(_ blocks: [RAMBlock], in container: inout SectionContainer) {
        guard !blocks.isEmpty else { return }
        var writer = StateWriter()
        writer.put("count", UInt64(blocks.count))
        var offset = 0
        for (index, block) in blocks.enumerated() {
            writer.put("\(index).name", block.name)
            writer.put("\(index).length", UInt64(block.usedLength))
            writer.put("\(index).offset", UInt64(offset))
            writer.put("\(index).crc32c", UInt64(cbaton_crc32c(0, block.host, block.usedLength)))
            offset += block.usedLength
        }
        container.add(sectionName, version: 1, writer)
    }

    /// Told now and then how many bytes of how many are done.
    typealias Progress = (_ done: Int, _ total: Int) -> Void
    /// Bytes between two looks at the clock, and nanoseconds between two words
    /// about the progress.
    private static let progressStep = 16 << 20
    private static let progressInterval: Int64 = 100_000_000

    /// Writes the contents of `blocks` behind the sections.
    static func write(
        _ blocks: [RAMBlock], to fd: Int32, after sectionsEnd: Int, name: String, progress: Progress = { _, _ in }
    ) throws(VMMError) {
        guard !blocks.isEmpty else { return }
        let first = alignedEnd(sectionsEnd)
        let total = blocks.reduce(0) { $0 + $1.usedLength }
        var start = first
        var lastWord = EventLoop.now
        for block in blocks {
            var position = 0
            while position < block.usedLength {
                let end = min(block.usedLength, position + progressStep)
                try writeSparse(block, position..<end, to: fd, at: start, name: name)
                position = end
                guard EventLoop.now - lastWord > progressInterval else { continue }
                lastWord = EventLoop.now
                progress(start + position - first, total)
            }
            start += block.usedLength
        }
        guard retryingInterrupts({ ftruncate(fd, off_t(start)) }) == 0 else {
            throw .system("Could not write \(name)")
        }
        progress(total, total)
        if let block = blocks.first(where: \.hasLostPages) {
            throw VMMError("the memory of RAM block '\(block.name)' was lost while it was written to \(name)")
        }
    }

    static func alignedEnd(_ sectionsEnd: Int) -> Int { (sectionsEnd + page - 1) & ~(page - 1) }

    /// Writes runs of pages that are not all zero.
    private static func writeSparse(
        _ block: RAMBlock, _ range: Range<Int>, to fd: Int32, at start: Int, name: String
    ) throws(VMMError) {
        var position = range.lowerBound
        while position < range.upperBound {
            if isZero(block.host + position) {
                position += page
                continue
            }
            var end = position + page
            while end < range.upperBound, end - position < 1 << 20, !isZero(block.host + end) { end += page }
            var done = position
            while done < end {
                let n = retryingInterrupts { pwrite(fd, block.host + done, end - done, off_t(start + done)) }
                guard n > 0 else { throw .system("Could not write \(name)") }
                done += n
            }
            position = end
        }
    }

    private static func isZero(_ pointer: UnsafeMutableRawPointer) -> Bool {
        let words = pointer.assumingMemoryBound(to: UInt64.self)
        for index in 0..<(page / 8) where words[index] != 0 { return false }
        return true
    }

    /// Contents that have been checked and can be copied into their blocks.
    struct Checked {
        private let places: [Place]
        private let fd: Int32
        private let name: String

        fileprivate init(places: [Place], fd: Int32, name: String) {
            self.places = places
            self.fd = fd
            self.name = name
        }

        func contains(_ block: RAMBlock) -> Bool { places.contains { $0.block === block } }

        /// Copies all of them. The file is read a second time, and may have
        /// changed since it was checked.
        /// - Throws: why it cannot be read any more, or differs. Blocks of this
        ///   VM, which has not run, have then been changed.
        func copy() throws(VMMError) {
            for place in places {
                try RAMContents.read(place, from: fd, name: name) { source, offset, count in
                    RAMContents.copy(source, to: place.block.host + offset, count: count)
                }
            }
        }
    }

    /// Checks the contents that a checkpoint has against the blocks of this
    /// VM, and their checksums; changes nothing. What that costs is bounded by
    /// the size of the VM's memory, as no block occurs twice.
    /// - Parameter fd: borrowed, for as long as the result is used.
    static func check(_ container: SectionContainer, from fd: Int32, memory: GuestMemory, name: String)
        throws(VMMError) -> Checked
    {
        guard let section = container.section(sectionName) else { return Checked(places: [], fd: fd, name: name) }
        guard section.version == 1 else {
            throw VMMError(
                "section '\(sectionName)' of \(name) has version \(section.version), this VMM knows version 1")
        }
        let places = try places(try container.reader(section), in: fd, after: container.encodedLength, memory, name)
        for place in places { try read(place, from: fd, name: name) { _, _, _ in } }
        return Checked(places: places, fd: fd, name: name)
    }

    /// Reads the section, and checks that each block is one of this VM, occurs
    /// once, and is in the file, at a place of its own.
    private static func places(
        _ reader: StateReader, in fd: Int32, after sectionsEnd: Int, _ memory: GuestMemory, _ name: String
    ) throws(VMMError) -> [Place] {
        let fileLength = try Mapping.fileLength(fd)
        let base = alignedEnd(sectionsEnd)
        let blocks = Dictionary(memory.blocks.map { ($0.name, $0) }) { first, _ in first }
        var seen: Set<String> = []
        var places: [Place] = []
        for index in 0..<(try reader.unsigned("count", in: 0...1_000_000)) {
            let blockName = try reader.string("\(index).name")
            let length = try reader.unsigned("\(index).length")
            let offset = try reader.unsigned("\(index).offset", in: 0...(1 << 52))
            let crc = try reader.uint32("\(index).crc32c")
            guard let block = blocks[blockName] else {
                throw VMMError("\(name) has the contents of RAM block '\(blockName)', which this VM lacks")
            }
            guard seen.insert(blockName).inserted else {
                throw VMMError("\(name) has the contents of RAM block '\(blockName)' twice")
            }
            guard UInt64(block.usedLength) == length else {
                throw VMMError("Size mismatch: \(blockName): \(Hex(length)) != \(Hex(block.usedLength))")
            }
            guard base + Int(offset) + Int(length) <= fileLength else {
                throw VMMError("\(name) is truncated (the contents of RAM block '\(blockName)' are missing)")
            }
            guard !memory.isInherited(block) else {
                throw VMMError(
                    "\(name) has contents for RAM block '\(blockName)', "
                        + "which this process has taken over with what is in it")
            }
            places.append(Place(block: block, offset: base + Int(offset), crc: crc))
        }
        try reader.finish()
        places.sort { $0.offset < $1.offset }
        for (place, next) in zip(places, places.dropFirst())
        where place.offset + place.block.usedLength > next.offset {
            throw VMMError(
                "\(name) has the contents of the RAM blocks '\(place.block.name)' and '\(next.block.name)' "
                    + "in the same place")
        }
        return places
    }

    /// Reads the contents of one block piece by piece, and checks their sum.
    /// The file may become shorter at any time: it is read and not mapped.
    private static func read(
        _ place: Place, from fd: Int32, name: String,
        _ body: (_ source: UnsafeRawPointer, _ offset: Int, _ count: Int) -> Void
    ) throws(VMMError) {
        let length = place.block.usedLength
        let buffer = UnsafeMutableRawPointer.allocate(byteCount: chunk, alignment: page)
        defer { buffer.deallocate() }
        var sum: UInt32 = 0
        var offset = 0
        while offset < length {
            let count = min(chunk, length - offset)
            var filled = 0
            while filled < count {
                let n = retryingInterrupts {
                    pread(fd, buffer + filled, count - filled, off_t(place.offset + offset + filled))
                }
                guard n >= 0 else { throw .system("Could not read '\(name)'") }
                guard n > 0 else {
                    throw VMMError(
                        "\(name) is truncated (the contents of RAM block '\(place.block.name)' are missing)")
                }
                filled += n
            }
            sum = cbaton_crc32c(sum, buffer, count)
            body(buffer, offset, count)
            offset += count
        }
        guard sum == place.crc else {
            throw VMMError("\(name) has damaged contents of RAM block '\(place.block.name)' (checksum mismatch)")
        }
    }
    private static let chunk = 1 << 20

    /// Copies pages that differ, so that pages of zeroes take no memory.
    private static func copy(_ source: UnsafeRawPointer, to target: UnsafeMutableRawPointer, count: Int) {
        for offset in stride(from: 0, to: count, by: page)
        where memcmp(source + offset, target + offset, page) != 0 {
            memcpy(target + offset, source + offset, page)
        }
    }
}
