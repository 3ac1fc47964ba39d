import BatonRuntime
import Glibc
import Testing

/// The allocator chain and what it records.
struct GuestMemoryTests {
    private final class MemfdHook: AllocatorHook {
        let hookName = "test"
        func allocate(_ request: RAMRequest, memory: GuestMemory) throws(VMMError) -> RAMBlock? {
            guard request.name != "left alone" else { return nil }
            return try memory.preservedBlock(request, shared: true, origin: hookName) { () throws(VMMError) in
                try Mapping.createMemfd(name: request.name, length: request.maxLength).release()
            }
        }
    }

    private let page = Mapping.pageSize

    @Test func aHookMakesBlocksAndTheRestIsAnonymous() throws {
        let memory = GuestMemory()
        memory.addHook(MemfdHook())
        let flash = try memory.allocate(RAMRequest(name: "flash", usedLength: page, maxLength: 4 * page))
        #expect(flash.isPreservable && flash.origin == "test")
        let other = try memory.allocate(RAMRequest(name: "left alone", usedLength: page))
        #expect(!other.isPreservable && other.origin == "anonymous" && other.fd == -1)
        #expect(memory.records.current.map(\.name) == ["flash"])
        #expect(memory.records.current[0].usedLength == page && memory.records.current[0].maxLength == 4 * page)
        #expect(try Mapping.fileLength(flash.fd) >= 4 * page)
    }

    @Test func aFreedBlockIsForgotten() throws {
        let memory = GuestMemory()
        memory.addHook(MemfdHook())
        var block: RAMBlock? = try memory.allocate(RAMRequest(name: "rom", usedLength: page))
        let fd = try #require(block).fd
        var status = stat()
        try #require(fstat(fd, &status) == 0)
        let inode = status.st_ino
        memory.free(try #require(block))
        block = nil
        #expect(memory.records.current.isEmpty)
        // Another test's file may have the number by now.
        #expect(fstat(fd, &status) != 0 || status.st_ino != inode)
    }

    @Test func alignmentIsKept() throws {
        let memory = GuestMemory()
        let block = try memory.allocate(RAMRequest(name: "left alone", usedLength: page, alignment: 2 << 20))
        #expect(UInt(bitPattern: block.host) % (2 << 20) == 0)
    }

    @Test func aNameIsUsedOnce() throws {
        let memory = GuestMemory()
        _ = try memory.allocate(RAMRequest(name: "a", usedLength: page))
        #expect(throws: VMMError.self) { try memory.allocate(RAMRequest(name: "a", usedLength: page)) }
        #expect(memory.blocks.count == 1)
    }
}

struct PreservedFDsTests {
    @Test func fdsAreFoundByNameAndID() throws {
        let fds = PreservedFDs()
        try fds.save("vfio", id: 0, 10)
        try fds.save("vfio", id: 1, 11)
        try fds.save("tap", 12)
        #expect(fds.find("vfio", id: 1) == 11)
        #expect(fds.find("vfio", id: 2) == nil)
        fds.delete("vfio", id: 0)
        #expect(fds.find("vfio") == nil)
        var seen: [Int32] = []
        try fds.walk { entry throws(VMMError) in seen.append(entry.fd) }
        #expect(seen == [11, 12])
    }

    @Test func anotherValueUnderTheSameNameIsAConflict() throws {
        let fds = PreservedFDs()
        try fds.save("vfio", id: 3, 10)
        try fds.resave("vfio", id: 3, 10)
        do {
            try fds.resave("vfio", id: 3, 11)
            Issue.record("no conflict")
        } catch {
            #expect(
                error.message == "internal error: cpr fd 'vfio' id 3 value 11 already saved with a different value 10")
        }
        #expect(throws: VMMError.self) { try fds.save("vfio", id: 3, 10) }
    }
}
