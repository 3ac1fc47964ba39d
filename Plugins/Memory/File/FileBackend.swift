import BatonRuntime
import CBaton
import Glibc

/// The module `memory-backend-file`.
@_cdecl("baton_module_query")
public func batonModuleQuery() -> UnsafeRawPointer {
    ModuleDescriptor.make(kind: "memory-backend", name: "file", version: "1.0") { registrar throws(VMMError) in
        try registrar.add(FileBackend())
    }
}

/// `-object memory-backend-file,id=ID,size=SIZE,mem-path=PATH[,share=on|off][,locking=on|off]`:
/// memory in a file, private unless `share=on`, as QEMU's.
///
/// The file is made, for its user only, or grown to `size` when it is empty; it
/// is never truncated. With `share=on` the open file, and not its path, is what a
/// restart hands over: it may be renamed or unlinked in between. It is locked
/// then, as two VMs in the same memory destroy each other; `locking=off` is for
/// memory that is shared on purpose.
final class FileBackend: MemoryBackendType {
    let typeName = "memory-backend-file"
    let summary = "memory in a file; preserved by restart with share=on"

    let properties = [
        DeviceProperty("mem-path", "str", "the file, or a directory to make one in"),
        DeviceProperty("locking", "bool", "whether a shared file is this VM's alone"),
    ]

    func makeBlock(
        _ request: RAMRequest, common: MemoryBackendProperties, options: KeyValueOptions, memory: GuestMemory
    ) throws(VMMError) -> RAMBlock {
        let path = try options.requiredString("mem-path")
        guard !path.isEmpty else { throw VMMError("Property 'mem-path' must not be empty") }
        let shared = common.share ?? false
        let locks = try options.bool("locking") ?? true
        let block = try memory.preservedBlock(request, shared: shared, origin: typeName) { () throws(VMMError) in
            try FileBackend.open(
                path, length: request.maxLength, locks: shared && locks, records: memory.records
            ).release()
        }
        if shared && GuestMemory.canBeMarked(block.fd) { block.file = FileBackend.persistentPath(path) }
        return block
    }

    /// The path under which the memory can be found after a reboot of the
    /// host; nil for a file that has no name, or one in memory.
    private static func persistentPath(_ path: String) -> String? {
        var status = stat()
        let isFile = stat(path, &status) == 0 && status.st_mode & S_IFMT == S_IFREG
        return isFile && cbaton_is_memory_filesystem(path) == 0 ? path : nil
    }

    /// Opens the file, or makes one in a directory given instead, with at
    /// least `length` bytes.
    private static func open(_ path: String, length: Int, locks: Bool, records: RAMRecords)
        throws(VMMError) -> OwnedFD
    {
        var status = stat()
        if stat(path, &status) == 0 && status.st_mode & S_IFMT == S_IFDIR {
            return try openTemporary(in: path, length: length)
        }
        let raw: Int32
        do throws(VMMError) {
            raw = try FD.openFile(path, O_RDWR | O_CREAT).release()
        } catch {
            throw error.prefixed("can't open backing store \(path) for guest RAM")
        }
        let fd = OwnedFD(adopting: raw)
        // The lock belongs to the open file, with whatever shares it: it goes over an exec with the descriptor.
        if locks, try !FileLock.acquire(fd.raw, name: "backing store \(path)") {
            // The VMM before has it, as a block that this command line does not ask for.
            if let missing = records.missing { throw missing }
            throw VMMError(
                "backing store \(path) is locked: another VMM has its guest's RAM there",
                hint: "Two VMs need two files. For memory that they share on purpose say locking=off in both.")
        }
        guard fstat(fd.raw, &status) == 0 else { throw .system("can't open backing store \(path) for guest RAM") }
        if Int(status.st_size) > 0 && Int(status.st_size) < length {
            throw VMMError("backing store size \(Hex(Int(status.st_size))) does not match 'size' option \(Hex(length))")
        }
        if status.st_size == 0 && ftruncate(fd.raw, off_t(length)) != 0 {
            throw .system("can't set the size of backing store \(path) to \(length) bytes")
        }
        return fd
    }

    private static func openTemporary(in directory: String, length: Int) throws(VMMError) -> OwnedFD {
        var template = Array("\(directory)/baton-ram.XXXXXX".utf8CString)
        let raw = mkstemp(&template)
        guard raw >= 0 else { throw .system("can't create backing store in \(directory) for guest RAM") }
        let fd = OwnedFD(adopting: raw)
        unlink(template)
        try FD.setCloseOnExec(fd.raw, true)
        guard ftruncate(fd.raw, off_t(length)) == 0 else {
            throw .system("can't set the size of backing store in \(directory) to \(length) bytes")
        }
        return fd
    }
}
