import CBaton
import Glibc
import TestSupport
import Testing

/// Mappings of files that become shorter.
@Suite("Memory guard") struct MemoryGuardTests {
    private let length = 8 * 4096

    /// A mapping of a file that has no pages any more.
    private func mapping(_ directory: TemporaryDirectory, _ name: String) throws -> UnsafeMutableRawPointer {
        let fd = open(try directory.writeSparse(name, size: length), O_RDWR | O_CLOEXEC)
        try #require(fd >= 0)
        defer { close(fd) }
        let start = try #require(mmap(nil, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0))
        try #require(start != MAP_FAILED && ftruncate(fd, 0) == 0)
        return start
    }

    @Test("Guest memory and device memory are guarded side by side, each in its way")
    func bothKinds() throws {
        let directory = try TemporaryDirectory()
        let (ram, device) = (try mapping(directory, "ram"), try mapping(directory, "device"))
        defer {
            for start in [ram, device] {
                cbaton_guard_remove(start)
                munmap(start, length)
            }
        }
        try #require(cbaton_guard_add(ram, length, CBATON_GUARD_RAM) == 0)
        try #require(cbaton_guard_add(device, length, CBATON_GUARD_DEVICE) == 0)
        #expect(cbaton_guard_has_lost(ram) == 0)
        // In turns: neither is the last that was asked for.
        for page in stride(from: 0, to: length, by: 4096) {
            #expect(ram.load(fromByteOffset: page, as: UInt64.self) == 0)
            #expect(device.load(fromByteOffset: page + 8, as: UInt64.self) == UInt64.max)
        }
        // Both go on as memory.
        ram.storeBytes(of: 7, toByteOffset: 4096, as: UInt64.self)
        device.storeBytes(of: 8, toByteOffset: 4096, as: UInt64.self)
        #expect(ram.load(fromByteOffset: 4096, as: UInt64.self) == 7)
        #expect(device.load(fromByteOffset: 4096, as: UInt64.self) == 8)
        #expect(cbaton_guard_has_lost(ram) != 0)
        #expect(cbaton_guard_has_lost(device) == 0)
    }
}
