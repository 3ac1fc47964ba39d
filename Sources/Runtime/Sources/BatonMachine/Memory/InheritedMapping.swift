import BatonBase
import CBaton
import Glibc

/// Memory of the process before, which this process has mapped for reading only until
/// the guest is its own.
///
/// A guest finds each page of a new mapping missing at its first access, at half a
/// microsecond each: half of its first second, if it uses 4 GiB. So a second mapping is made that can be written to,
/// at an address that nobody knows, with the translations of all pages that there are; at
/// the commit it is moved to the place of the first. That moves tables, not
/// pages: a GiB at a time, as both begin at a multiple of one, and have room up to the next.
struct InheritedMapping {
    let name: String
    let host: UnsafeMutableRawPointer
    let length: Int
    /// The memory's descriptor. Borrowed.
    let fd: Int32
    /// What has been advised about the first mapping (madvise(2)).
    var advice: [Int32] = []
    /// The second one, until it is moved.
    private var prepared: UnsafeMutableRawPointer?

    /// Bytes that must be there for it to be worth the move: the guest finds fewer pages missing in less time.
    private static let leastBytes = 4 << 20
    /// Bytes between two looks at the clock: some 0.2 ms, after which the guest can have the processor.
    private static let step = 1 << 20
    /// What a table of the third level translates.
    static let tableReach = 1 << 30
    private let canBePrepared: Bool

    /// Whether memory is worth it: not what is written to a disk some time, as all of it would be.
    static func canBePrepared(_ fd: Int32, length: Int) -> Bool {
        length >= leastBytes && cbaton_is_memory_file(fd) != 0
    }

    /// Bytes of address space that a mapping takes which is to be replaced by a second one.
    static func room(for length: Int) -> Int { (length + tableReach - 1) & ~(tableReach - 1) }

    /// - Parameter canBePrepared: `host` is aligned to `tableReach` then, and has `room`.
    init(name: String, host: UnsafeMutableRawPointer, length: Int, fd: Int32, canBePrepared: Bool) {
        self.canBePrepared = canBePrepared
        self.name = name
        self.host = host
        self.length = length
        self.fd = fd
    }

    // MARK: While the process before has the guest

    /// Makes the second mapping. Does without where anything is in the way: then the first one is
    /// made writable.
    mutating func prepare(until deadline: Int64) {
        var status = stat()
        guard prepared == nil, canBePrepared, fstat(fd, &status) == 0,
            Int(status.st_blocks) * 512 >= InheritedMapping.leastBytes,
            // An offset of its own, as that of the descriptor is shared with the process before.
            let file = try? FD.open("/proc/thread-self/fd/\(fd)", O_RDONLY),
            let mapping = try? Mapping.map(
                length: InheritedMapping.room(for: length), alignment: InheritedMapping.tableReach, fd: fd,
                shared: true, name: name)
        else { return }
        // Of all of it: it must stay one mapping to the kernel, which before Linux 6.17 moves no more at once.
        for one in advice { madvise(mapping, InheritedMapping.room(for: length), one) }
        prepared = mapping
        var place = 0
        while place < length {
            let begin = Int(lseek(file.raw, off_t(place), CBATON_SEEK_DATA))
            guard begin >= place, begin < length else { return }
            let end = min(Int(lseek(file.raw, off_t(begin), CBATON_SEEK_HOLE)), length)
            guard end > begin, populate(mapping, begin..<end, until: deadline) else {
                return
            }
            place = end
        }
    }

    /// Pages that are not in memory now, as they are swapped out, stay where they are.
    /// - Returns: false when it is time to stop.
    private func populate(
        _ mapping: UnsafeMutableRawPointer, _ range: Range<Int>, until deadline: Int64
    ) -> Bool {
        let page = Mapping.pageSize
        var isResident = [UInt8](repeating: 0, count: InheritedMapping.step / page)
        for start in stride(from: range.lowerBound / page * page, to: range.upperBound, by: InheritedMapping.step) {
            let pages = (min(InheritedMapping.step, range.upperBound - start) + page - 1) / page
            // Where both share a processor the kernel would change between them at its ticks only.
            sched_yield()
            guard EventLoop.now < deadline, mincore(mapping + start, pages * page, &isResident) == 0 else {
                return false
            }
            var next = 0
            while let first = isResident[next..<pages].firstIndex(where: { $0 & 1 != 0 }) {
                next = isResident[first..<pages].firstIndex { $0 & 1 == 0 } ?? pages
                let bytes = (next - first) * page
                guard madvise(mapping + start + first * page, bytes, CBATON_MADV_POPULATE_WRITE) == 0 else {
                    return false
                }
            }
        }
        return true
    }

    // MARK: The commit

    /// - Returns: false, and errno, when it stays as it is.
    mutating func makeWritable() -> Bool {
        guard let mapping = prepared else { return mprotect(host, length, PROT_READ | PROT_WRITE) == 0 }
        prepared = nil
        let room = InheritedMapping.room(for: length)
        guard cbaton_move_mapping(mapping, room, host) != 0 else { return true }
        // What was in its place may be gone. Then it is as in the beginning, but not prepared.
        let isMapped =
            mmap(host, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == host
            && mmap(host, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE | MAP_FIXED, fd, 0) == host
        let code = errno
        if isMapped { for one in advice { madvise(host, length, one) } }
        munmap(mapping, room)
        errno = code
        return isMapped
    }

    func makeReadOnly() { mprotect(host, length, PROT_READ) }
}
