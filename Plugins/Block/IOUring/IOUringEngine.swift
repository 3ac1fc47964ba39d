import BatonRuntime
import CBaton
import CIOUring
import Glibc

/// The module `block-io_uring`.
@_cdecl("baton_module_query")
public func batonModuleQuery() -> UnsafeRawPointer {
    ModuleDescriptor.make(kind: "block", name: "io_uring", version: "1.0") { registrar throws(VMMError) in
        try registrar.add(IOUringType())
    }
}

// What it needs of a sandbox: io_uring_setup, io_uring_enter and io_uring_register.
@_cdecl("baton_module_needs_system_call_425") public func needsSetup() {}
@_cdecl("baton_module_needs_system_call_426") public func needsEnter() {}
@_cdecl("baton_module_needs_system_call_427") public func needsRegister() {}

final class IOUringType: BlockEngineType {
    let name = "io_uring"
    let summary = "requests that the kernel carries out, by Linux' io_uring"
    func make() -> BlockEngine { IOUringEngine() }
}

/// One ring for all disks of a VM.
///
/// The kernel ends a ring's requests when the process that made them executes something: the block layer has none in hand
/// then, and both processes make rings of their own.
final class IOUringEngine: BlockEngine {
    /// Requests that are submitted by one call.
    private static let entries: UInt32 = 256
    /// Bytes from which on a request goes to a thread of the kernel's at once, if its data may be in the page cache: the
    /// copying would take the guest's processor.
    private static let asynchronousLength = 128 << 10

    private var ring: OpaquePointer?
    private var eventFD: Int32 = -1
    /// What did not fit.
    private var waiting = BlockRequestList()

    init() { super.init(name: "io_uring") }

    deinit { stop() }

    override func start() throws(VMMError) {
        let event = cbaton_eventfd()
        guard event >= 0 else { throw .system("Could not create an eventfd") }
        guard let made = ciouring_make(IOUringEngine.entries, event) else {
            let code = errno
            close(event)
            throw .system(
                "the kernel refuses io_uring", errno: code,
                hint: code == EPERM ? "The sysctl kernel.io_uring_disabled, or a seccomp filter, may forbid it." : nil)
        }
        (ring, eventFD) = (made, event)
    }

    override var event: Int32 { eventFD }

    override func add(_ request: UnsafeMutablePointer<BlockRequest>) {
        // In order, as far as there is room.
        if !waiting.isEmpty || !put(request) { waiting.append(request) }
    }

    private func put(_ request: UnsafeMutablePointer<BlockRequest>) -> Bool {
        let (fd, offset) = (request.pointee.fd, request.pointee.offset)
        let count = UInt32(truncatingIfNeeded: request.pointee.pieceCount)
        let mayCopy = !request.pointee.isDirect && request.pointee.pieceLength >= IOUringEngine.asynchronousLength
        let isLong: Int32 = mayCopy ? 1 : 0
        switch request.pointee.kind {
        case .read: return ciouring_read(ring, fd, request.pointee.vectors, count, offset, isLong, request) == 0
        case .write:
            return ciouring_write(
                ring, fd, request.pointee.vectors, count, offset, request.pointee.isDurable ? 1 : 0, isLong, request)
                == 0
        case .flush, .discard, .writeZeroes: return ciouring_flush(ring, fd, request) == 0
        }
    }

    override func submit() -> Bool {
        while let request = waiting.first {
            guard put(request) else { break }
            _ = waiting.removeFirst()
        }
        return ciouring_submit(ring) == 0 && waiting.isEmpty
    }

    override func reap() -> UnsafeMutablePointer<BlockRequest>? {
        var ended = BlockRequestList()
        var result: Int32 = 0
        while let tag = ciouring_reap(ring, &result) {
            let request = tag.assumingMemoryBound(to: BlockRequest.self)
            request.pointee.result = Int(result)
            ended.append(request)
        }
        return ended.removeAll()
    }

    override func stop() {
        if let ring { ciouring_free(ring) }
        if eventFD >= 0 { close(eventFD) }
        (ring, eventFD) = (nil, -1)
    }
}
