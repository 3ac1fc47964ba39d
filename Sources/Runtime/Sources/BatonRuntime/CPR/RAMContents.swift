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
    final class Checked {
        private let mapping: UnsafeMutableRawPointer
        private let length: Int
        private let places: [Place]

        fileprivate init(mapping: UnsafeMutableRawPointer, length: Int, places: [Place]) {
            self.mapping = mapping
            self.length = length
            self.places = places
        }

        deinit { munmap(mapping, length) }

        func copy() {
            for place in places { RAMContents.copy(mapping + place.offset, to: place.block) }
        }
    }

    /// Checks the contents that a checkpoint has against the blocks of this
    /// VM, and their checksums; changes nothing.
    /// - Returns: nil when the checkpoint has none.
    static func check(_ container: SectionContainer, from fd: Int32, memory: GuestMemory, name: String)
        throws(VMMError) -> Checked?
    {
        guard let section = container.section(sectionName) else { return nil }
        guard section.version == 1 else {
            throw VMMError(
                "section '\(sectionName)' of \(name) has version \(section.version), this VMM knows version 1")
        }
        let reader = try container.reader(section)
        let fileLength = try Mapping.fileLength(fd)
        let base = alignedEnd(container.encodedLength)
        var places: [Place] = []
        for index in 0..<(try reader.unsigned("count", in: 0...1_000_000)) {
            let blockName = try reader.string("\(index).name")
            let length = try reader.unsigned("\(index).length")
            let offset = try reader.unsigned("\(index).offset", in: 0...(1 << 52))
            let crc = try reader.uint32("\(index).crc32c")
            guard let block = memory.blocks.first(where: { $0.name == blockName }) else {
                throw VMMError("\(name) has the contents of RAM block '\(blockName)', which this VM lacks")
            }
            guard UInt64(block.usedLength) == length else {
                throw VMMError("Size mismatch: \(blockName): \(Hex(length)) != \(Hex(block.usedLength))")
            }
            guard base + Int(offset) + Int(length) <= fileLength else {
                throw VMMError("\(name) is truncated (the contents of RAM block '\(blockName)' are missing)")
            }
            places.append(Place(block: block, offset: base + Int(offset), crc: crc))
        }
        try reader.finish()
        guard let mapping = mmap(nil, fileLength, PROT_READ, MAP_PRIVATE, fd, 0), mapping != MAP_FAILED else {
            throw .system("Could not read '\(name)'")
        }
        let checked = Checked(mapping: mapping, length: fileLength, places: places)
        for place in places
        where cbaton_crc32c(0, mapping + place.offset, place.block.usedLength) != place.crc {
            throw VMMError("\(name) has damaged contents of RAM block '\(place.block.name)' (checksum mismatch)")
        }
        return checked
    }

    /// Copies pages that differ, so that pages of zeroes take no memory.
    fileprivate static func copy(_ source: UnsafeMutableRawPointer, to block: RAMBlock) {
        for offset in stride(from: 0, to: block.usedLength, by: page)
        where memcmp(source + offset, block.host + offset, page) != 0 {
            memcpy(block.host + offset, source + offset, page)
        }
    }
}
