import CBaton

/// What a thread of a VM in a sandbox is for: it gives up what it does not need, beside what the whole VM has given up.
///
/// Threads share their memory, so a role is a second hurdle for who breaks out, and no boundary.
public struct SandboxRole {
    private let filter: SeccompFilter

    /// Reads and writes what disks are made of.
    public static let diskWorker = SandboxRole(
        filter: SeccompFilter(allowing: .ofDiskWorkers, otherwise: .refuse))
    /// Runs the guest, and carries out what it asks of its devices: no programs, new files, names or connections. What
    /// the VMM's calls are beside that is open to it, as a device may be any module's.
    public static let cpu = SandboxRole(filter: SeccompFilter(taking: .notOfCPUs, isForThreads: true))

    /// Takes the calling thread into the role, for ever. Outside of a sandbox it does nothing. Where the kernel has no
    /// memory for it, the thread goes on with what the VM has.
    public func enter() {
        guard HostAccess.socket >= 0 else { return }
        _ = try? filter.install()
    }
}
