import BatonBase
import CBaton
import Glibc

/// All RAM blocks of the VM, and the chain of allocators that makes them: a
/// block that names a backend goes to that backend, any other is offered to
/// the hooks of the enabled modes in order, and what no hook takes becomes
/// anonymous memory.
public final class GuestMemory {
    /// A `-object memory-backend-*`.
    public struct Backend {
        public let id: String
        public let typeName: String
        public let block: RAMBlock
        public let properties: MemoryBackendProperties
        /// Whether a machine or device uses it (`memory-backend=ID`).
        public var inUse = false
    }

    public private(set) var backends: [Backend] = []
    /// Every block, in the order of allocation.
    public private(set) var blocks: [RAMBlock] = []
    /// What outlives an exec.
    public let records = RAMRecords()
    private var hooks: [any AllocatorHook] = []
    private var names: Set<String> = []
    /// Memory of the process before that must not change until it is ours.
    private var readOnlyBlocks: [InheritedMapping] = []
    /// Which state of memory this is, while nothing changes it: see `identify`.
    package var identity: String?
    /// Whether files may have the mark of a save: one of this process, or of
    /// one before it.
    var mayBeMarked = true
    /// The marks that `willChange` has removed last. The descriptors are the blocks'.
    var removedMarks: [(fd: Int32, mark: String)] = []
    /// `-machine mem-merge=`: whether KSM may merge equal pages of any block.
    public var merge = true
    /// `-machine dump-guest-core=`: whether core dumps hold guest memory.
    public var dumpGuestCore = true

    /// A trial run makes no memory that anybody else could see.
    package var isTrial = false
    /// Nanoseconds spent on mapping what the process before left.
    package private(set) var mappingTime: Int64 = 0

    public init() {}

    public func addHook(_ hook: any AllocatorHook) { hooks.append(hook) }

    /// Makes the memory of a `-object memory-backend-*`.
    public func createBackend(
        type: any MemoryBackendType, id: String, request: RAMRequest, properties: MemoryBackendProperties,
        options: KeyValueOptions
    ) throws(VMMError) {
        guard backend(id) == nil else {
            throw VMMError("attempt to add duplicate property '\(id)' to object (type 'container')")
        }
        let block = try type.makeBlock(request, common: properties, options: options, memory: self)
        try adopt(block, merge: properties.merge && merge, dump: properties.dump && dumpGuestCore)
        if !isForeign(block) {
            // Before there is a page that would have to move.
            try properties.hostNodes?.apply(to: block.host, length: block.maxLength)
            if properties.prealloc { try populate(block) }
        }
        backends.append(Backend(id: id, typeName: type.typeName, block: block, properties: properties))
    }

    public func backend(_ id: String) -> Backend? { backends.first { $0.id == id } }

    /// Gives a backend's block to its one user.
    /// - Throws: QEMU's errors when there is no such backend or it is in use.
    public func claimBackend(_ id: String) throws(VMMError) -> RAMBlock {
        guard let index = backends.firstIndex(where: { $0.id == id }) else {
            throw VMMError("Memory backend '\(id)' not found")
        }
        guard !backends[index].inUse else { throw VMMError("memory backend '\(id)' can't be used multiple times.") }
        backends[index].inUse = true
        return backends[index].block
    }

    /// Makes a block that has no backend.
    public func allocate(_ request: RAMRequest) throws(VMMError) -> RAMBlock {
        for hook in hooks {
            if let block = try hook.allocate(request, memory: self) {
                try adopt(block, merge: merge, dump: dumpGuestCore)
                return block
            }
        }
        let host = try Mapping.map(
            length: request.maxLength, alignment: request.alignment, fd: -1, shared: false, name: request.name)
        let block = RAMBlock(
            name: request.name, usedLength: request.usedLength, maxLength: request.maxLength,
            alignment: request.alignment, host: host, fd: -1, shared: false, origin: "anonymous")
        try adopt(block, merge: merge, dump: dumpGuestCore)
        return block
    }

    /// Takes a block into the VM and gives it the advice that every block gets.
    private func adopt(_ block: RAMBlock, merge: Bool, dump: Bool) throws(VMMError) {
        guard !names.contains(block.name) else {
            throw VMMError("RAMBlock \"\(block.name)\" already registered, abort!")
        }
        try block.guardMapping()
        // Huge pages as QEMU asks for them. Of a memfd's memory that is for the host to allow: `shmem_enabled` (Linux'
        // Documentation/admin-guide/mm/transhuge.rst).
        let advice = [CBATON_MADV_HUGEPAGE] + (merge ? [MADV_MERGEABLE] : []) + (dump ? [] : [MADV_DONTDUMP])
        // Advice that the kernel lacks changes nothing for the guest.
        for one in advice { madvise(block.host, block.maxLength, one) }
        if let index = readOnlyBlocks.firstIndex(where: { $0.host == block.host }) {
            readOnlyBlocks[index].advice = advice
        }
        names.insert(block.name)
        blocks.append(block)
    }

    /// Whether a block is memory of the process before, which this process has
    /// mapped and not yet made its own.
    package func isInherited(_ block: RAMBlock) -> Bool { readOnlyBlocks.contains { $0.host == block.host } }

    /// Whether a block's memory is, or in a trial stands for, that of the
    /// process before: what that one has allocated, or not, stays so.
    private func isForeign(_ block: RAMBlock) -> Bool {
        isTrial || isInherited(block)
    }

    private func populate(_ block: RAMBlock) throws(VMMError) {
        guard madvise(block.host, block.usedLength, CBATON_MADV_POPULATE_WRITE) == 0 else {
            throw .system("cannot preallocate memory for RAM block '\(block.name)'")
        }
    }

    /// Makes or finds memory that outlives an exec: the allocation of modes'
    /// hooks and of shared memory backends.
    ///
    /// A block of that name which the process before handed over is mapped
    /// again; else a descriptor is made by `create` and recorded.
    /// - Parameters:
    ///   - shared: false maps a private copy, which is not recorded.
    ///   - create: opens at least `request.maxLength` bytes of memory.
    public func preservedBlock(
        _ request: RAMRequest, shared: Bool, origin: String, create: () throws(VMMError) -> Int32
    ) throws(VMMError) -> RAMBlock {
        let found = shared ? try records.find(request) : nil
        let fd: OwnedFD
        if let found {
            fd = OwnedFD(adopting: found.fd)
        } else if isTrial {
            fd = try Mapping.createMemfd(name: request.name, length: request.maxLength)
        } else {
            fd = OwnedFD(adopting: try create())
        }
        let begin = EventLoop.now
        // Whether memory can be written to shows here, where the way back is open.
        let memory = fd.raw
        var isPrepared =
            found != nil && !isTrial && InheritedMapping.canBePrepared(memory, length: request.maxLength)
        func map() throws(VMMError) -> UnsafeMutableRawPointer {
            try Mapping.map(
                length: request.maxLength,
                alignment: isPrepared ? max(request.alignment, InheritedMapping.tableReach) : request.alignment,
                reserve: isPrepared ? InheritedMapping.room(for: request.maxLength) : 0, fd: memory, shared: shared,
                writable: found == nil || !isTrial, name: request.name)
        }
        let host: UnsafeMutableRawPointer
        do throws(VMMError) { host = try map() } catch {
            guard isPrepared else { throw error }
            // Where address space is limited there may be none to spare for that.
            isPrepared = false
            host = try map()
        }
        let reserve = isPrepared ? InheritedMapping.room(for: request.maxLength) : request.maxLength
        if found != nil {
            // Until the commit the process before can have its guest back, so
            // nothing here may store to it: an attempt is fatal to this process.
            if !isTrial, mprotect(host, request.maxLength, PROT_READ) != 0 {
                let code = errno
                munmap(host, reserve)
                throw .system("cannot set up guest memory '\(request.name)'", errno: code)
            }
            readOnlyBlocks.append(
                InheritedMapping(
                    name: request.name, host: host, length: request.maxLength, fd: fd.raw, canBePrepared: isPrepared))
            mappingTime += EventLoop.now - begin
        }
        if shared {
            try records.save(
                RAMRecord(
                    name: request.name, usedLength: request.usedLength, maxLength: request.maxLength,
                    alignment: request.alignment, fd: fd.raw))
        }
        let block = RAMBlock(
            name: request.name, usedLength: request.usedLength, maxLength: request.maxLength,
            alignment: request.alignment, host: host, fd: fd.release(), shared: shared, origin: origin, reserve: reserve
        )
        let records = self.records
        if shared { block.onFree = { records.delete($0.name) } }
        return block
    }

    /// What that is added to this process' nice value by which memory is prepared: a guest that shares the one
    /// processor with it keeps nine tenths of it.
    private static let preparationNice: Int32 = 10
    private struct Preparation {
        let blocks: UnsafeMutablePointer<[InheritedMapping]>
        let deadline: Int64
    }

    /// Prepares the memory of the process before for the commit, beside the guest:
    /// see `InheritedMapping`. What is not done by `deadline` (CLOCK_MONOTONIC in nanoseconds)
    /// is left to the guest's accesses. It is done at a low priority, as the guest may need the processor.
    package func prepareInherited(until deadline: Int64) {
        guard !isTrial else { return }
        let begin = EventLoop.now
        withUnsafeMutablePointer(to: &readOnlyBlocks) { blocks in
            var work = Preparation(blocks: blocks, deadline: deadline)
            cbaton_run_nicely(
                GuestMemory.preparationNice,
                { work in
                    guard let work = work?.assumingMemoryBound(to: Preparation.self).pointee else { return }
                    for index in work.blocks.pointee.indices {
                        work.blocks.pointee[index].prepare(until: work.deadline)
                    }
                }, &work)
        }
        mappingTime += EventLoop.now - begin
    }

    /// Lets this process write to the memory of the process before: the last
    /// that can fail before the guest is taken over, and nothing writes until then.
    /// - Throws: why not; all of it is read-only as before.
    package func makeWritable() throws(VMMError) {
        for index in readOnlyBlocks.indices where !readOnlyBlocks[index].makeWritable() {
            let failure = VMMError.system(
                "cannot make the memory of RAM block '\(readOnlyBlocks[index].name)' writable")
            for earlier in readOnlyBlocks[..<index] { earlier.makeReadOnly() }
            throw failure
        }
    }

    /// The guest is this process' now, and its memory is like any other.
    package func commit() { readOnlyBlocks = [] }

    /// Why the guest's memory is not whole any more; nil while it is. Its file
    /// was shortened, or the file system had no room for a page.
    package var loss: VMMError? {
        guard let block = blocks.first(where: \.hasLostPages) else { return nil }
        let file = FD.path(block.fd).map { " in '\($0)'" } ?? ""
        return VMMError(
            "the memory of RAM block '\(block.name)'\(file) is lost: "
                + "the file was made shorter, or its file system is full",
            hint: "The guest cannot go on, and cannot be saved. Start it anew when the file is as it should be.")
    }

    /// Why a block would be lost with this process, in the words of QEMU's CPR
    /// series; nil when it would not.
    /// - Parameters:
    ///   - remedy: what can be done about it, as a sentence: the mode that asks knows.
    ///   - backendRemedy: the same for the block of a memory backend.
    public func volatility(of block: RAMBlock, remedy: String = "", backendRemedy: String = "") -> VMMError? {
        if block.isPreservable {
            guard cbaton_is_write_sealed(block.fd) != 0 else { return nil }
            return VMMError(
                "Memory region \(block.name) has been sealed against writing, and a new VMM could not write to it.")
        }
        let advice = backends.contains { $0.block === block } ? backendRemedy : remedy
        return VMMError("Memory region \(block.name) is volatile." + (advice.isEmpty ? "" : " \(advice)"))
    }

    /// Frees a block that nothing uses any more.
    public func free(_ block: RAMBlock) {
        blocks.removeAll { $0 === block }
        names.remove(block.name)
    }
}
