import Foundation
import ProcessSupport

/// What was in every RAM block of a stopped VM, page by page, read from the
/// VMM's memory and not through anything that could err with it.
struct RAMSnapshot {
    private static let pageSize = 4096

    /// By block: the hash of each page that is not all zeroes.
    private var blocks: [String: [Int: UInt64]] = [:]
    private var sizes: [String: Int] = [:]

    var summary: String {
        let bytes = sizes.values.reduce(0, +)
        let pages = blocks.values.reduce(0) { $0 + $1.count }
        return "\(sizes.count) blocks, \(bytes >> 20) MiB, \(pages) pages not zero"
    }

    init(_ machine: Machine) throws {
        guard let table = try machine.query("x-query-ramblock")["human-readable-text"] as? String else {
            throw Failure("x-query-ramblock gives no table")
        }
        let pid = try machine.statedPID()
        for line in table.split(separator: "\n").dropFirst() {
            // Name, page size and its unit, offset, used, total, address, access, descriptor, …
            let columns = line.split(separator: " ")
            guard columns.count >= 9, let used = Self.number(columns[4]), let address = Self.number(columns[6]),
                let descriptor = Int32(columns[8])
            else { throw Failure("x-query-ramblock has the line '\(line)'") }
            let name = String(columns[0])
            // By its descriptor a hole can be read without filling it.
            let file = descriptor >= 0 ? "/proc/\(pid)/fd/\(descriptor)" : "/proc/\(pid)/mem"
            blocks[name] = try Self.hashes(file, from: descriptor >= 0 ? 0 : address, count: used)
            sizes[name] = used
        }
    }

    private static func number(_ text: Substring) -> Int? { Int(text.dropFirst(2), radix: 16) }

    private static func hashes(_ file: String, from start: Int, count: Int) throws -> [Int: UInt64] {
        let fd = open(file, O_RDONLY | O_CLOEXEC)
        guard fd >= 0 else { throw Failure.system("open \(file)") }
        defer { close(fd) }
        var result: [Int: UInt64] = [:]
        let chunk = 1 << 20
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: chunk, alignment: 8)
        defer { buffer.deallocate() }
        var done = 0
        while done < count {
            let wanted = min(chunk, count - done)
            let got = pread(fd, buffer.baseAddress, wanted, off_t(start + done))
            guard got > 0 else { throw Failure.system("read \(file) at \(start + done)") }
            let words = buffer.bindMemory(to: UInt64.self)
            for page in 0..<(got / pageSize) {
                var hash: UInt64 = 0xcbf2_9ce4_8422_2325
                var any: UInt64 = 0
                for index in (page * pageSize / 8)..<((page + 1) * pageSize / 8) {
                    any |= words[index]
                    hash = (hash ^ words[index]) &* 0x9e37_79b9_7f4a_7c15
                    hash ^= hash >> 29
                }
                if any != 0 { result[done / pageSize + page] = hash }
            }
            done += got / pageSize * pageSize
        }
        return result
    }

    /// - Throws: which page differs first.
    func expectEqual(to other: RAMSnapshot) throws {
        try require(sizes == other.sizes, "the RAM blocks were \(sizes) and are \(other.sizes)")
        for (name, pages) in blocks.sorted(by: { $0.key < $1.key }) {
            let now = other.blocks[name] ?? [:]
            let different = Set(pages.keys).union(now.keys).filter { pages[$0] != now[$0] }
            guard let first = different.min() else { continue }
            throw Failure(
                "\(different.count) page(s) of RAM block '\(name)' changed, "
                    + "the first at 0x\(String(first * Self.pageSize, radix: 16))")
        }
    }
}
