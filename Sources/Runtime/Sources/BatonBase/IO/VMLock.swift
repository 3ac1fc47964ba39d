import CBaton

/// The one lock of a VM: whoever calls a device, a monitor or the loop holds it.
///
/// The main thread has it whenever it runs, and lets go of it while it waits for events; a thread that runs a CPU
/// takes it to have an access of the guest carried out. It is not recursive. Where all CPUs run on the main thread
/// nobody else ever asks for it, and the loop does not let go of it.
public final class VMLock {
    private let raw: OpaquePointer

    /// Made by the thread that will hold it first: it is not held yet.
    public init() throws(VMMError) {
        guard let raw = cbaton_vm_lock_make() else { throw .system("Could not make a lock") }
        self.raw = raw
    }

    deinit { cbaton_vm_lock_free(raw) }

    public func acquire() { cbaton_vm_lock_acquire(raw) }
    public func release() { cbaton_vm_lock_release(raw) }

    /// Between `release` and `acquire`: gives whoever waits the time to get it, up to a tenth of a millisecond.
    public func yieldToWaiters() { cbaton_vm_lock_yield(raw) }
}
