import Foundation
import TestSupport
import Testing

/// A new VMM makes the translations of guest memory before it has the guest: of
/// what there is, and it makes nothing more.
@Suite(
    "Prepared memory", .enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"),
    .enabled(if: FileManager.default.isWritableFile(atPath: "/dev/shm"), "needs a file system in memory"))
struct PreparedMemoryTests {
    private static let size = 64 << 20
    private static let page = 4096
    /// The pages that the file has: as many as are worth it, and some alone.
    private static let pages = Array(0..<1200) + [1700, 8191, 16383]

    @Test("It is mapped as far as it exists, and not more of it exists then") func sparse() throws {
        let path = "/dev/shm/baton-test-\(getpid())-\(UInt32.random(in: 0 ... .max))"
        defer { unlink(path) }
        let fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0o600)
        try #require(fd >= 0 && ftruncate(fd, off_t(Self.size)) == 0)
        defer { close(fd) }
        for number in Self.pages {
            var byte = UInt8(truncatingIfNeeded: number + 1)
            try #require(pwrite(fd, &byte, 1, off_t(number * Self.page)) == 1)
        }
        func blocks() -> Int {
            var status = stat()
            return fstat(fd, &status) == 0 ? Int(status.st_blocks) * 512 : -1
        }
        let before = blocks()
        #expect(before == Self.pages.count * Self.page)
        // Nobody uses it: what is mapped of it has been by the new VMM.
        let guest = try CountingGuest(extra: [
            "-cpr-enable", "restart", "-object", "memory-backend-file,id=other,size=64M,mem-path=\(path),share=on",
        ])
        for _ in 0..<2 {
            try guest.qmp.execute("cpr-update", ["argv": guest.arguments])
            let mapping = try #require(try mappings(of: path, in: guest.process.pid).first)
            #expect(mapping.protection == "rw-s")
            #expect(mapping.resident == Self.pages.count * Self.page)
            #expect(try mappings(of: path, in: guest.process.pid).count == 1)
            #expect(blocks() == before)
        }
        for number in Self.pages {
            var byte: UInt8 = 0
            #expect(pread(fd, &byte, 1, off_t(number * Self.page)) == 1)
            #expect(byte == UInt8(truncatingIfNeeded: number + 1))
        }
        try guest.waitForProgress(past: guest.count)
    }

    private func mappings(of path: String, in pid: pid_t) throws -> [(protection: String, resident: Int)] {
        // `String(contentsOfFile:)` takes no more of such a file than comes with one read.
        let handle = try #require(FileHandle(forReadingAtPath: "/proc/\(pid)/smaps"))
        let lines = String(decoding: try handle.readToEnd() ?? Data(), as: UTF8.self).split(separator: "\n")
        return lines.indices.filter { lines[$0].hasSuffix(" " + path) }.map { index in
            let resident = lines[index...].first { $0.hasPrefix("Rss:") }?.split(separator: " ")
            return (
                String(lines[index].split(separator: " ")[1]),
                resident.flatMap { Int($0[1]) }.map { $0 << 10 } ?? -1
            )
        }
    }
}
