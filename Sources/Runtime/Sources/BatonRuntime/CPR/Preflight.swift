import CBaton
import Glibc

/// `cpr-preflight`: the new VMM is run beside the running guest, on copies, up
/// to the point where it would commit.
///
/// It gets what a successor gets, with these differences: guest memory by
/// descriptors that are open for reading only; for each connected socket one
/// that is connected to nobody; no token, so that it could not take the guest
/// over if it tried.
extension CprController {
    /// What a trial run that succeeded tells.
    public struct PreflightReport {
        /// Nanoseconds from the exec to the point of the commit.
        public var duration: Int64
        /// What it wrote to its standard error: warnings. The last few KiB.
        public var output: String
    }

    /// - Throws: why the new VMM could not take the guest over. The guest has
    ///   not noticed.
    @discardableResult
    public func preflight(_ argv: [String], _ options: UpdateOptions) throws(VMMError) -> PreflightReport {
        let limitBefore = updateLimit
        updateLimit = options.limit
        defer { updateLimit = limitBefore }
        let mode = try modeOfUpdate(argv, options.mode)
        isInPreflight = true
        defer { isInPreflight = false }
        let memfd = OwnedFD(adopting: cbaton_memfd_create("cpr-preflight", 0))
        try vm.resetIfNew()
        let checkpoint = try collect(mode, stateBefore: vm.runState)
        try Checkpoint.write(checkpoint.0, contents: checkpoint.1, toMemfd: memfd.raw)

        var copies = CopiedDescriptors()
        defer { copies.close() }
        let trial = try survey { () throws(VMMError) in
            var state = stateForExec(mode: mode)
            state.isTrial = true
            state.checkpointFD = memfd.raw
            for index in state.ram.indices { state.ram[index].fd = copies.readOnly(state.ram[index].fd) }
            state.fds = try state.fds.map { entry throws(VMMError) in
                PreservedFDs.Entry(name: entry.name, id: entry.id, fd: try copies.standIn(entry.fd))
            }
            return state
        }
        let run = try TrialRun(argv, state: trial)
        defer { run.end() }
        try run.watch(vm.loop, limit: options.limit)
        vm.run(until: { run.isDecided })
        guard run.isDecided else { throw VMMError("the VMM is ending") }
        if let failure = run.failure { throw failure }
        return PreflightReport(duration: run.duration, output: run.output)
    }

    /// Has everybody save and hand over what would be preserved now, for the
    /// time of `body`.
    func survey<Result>(_ body: () throws(VMMError) -> Result) throws(VMMError) -> Result {
        let before = fds.entries
        defer { fds.inherit(before) }
        try notify(.survey)
        return try body()
    }
}

/// Descriptors made for a trial run, which are closed after it has been started.
private struct CopiedDescriptors {
    private var owned: [Int32] = []

    /// The same file, open for reading only: memory that cannot be mapped for
    /// writing. Where the system does not allow that, the descriptor itself.
    mutating func readOnly(_ fd: Int32) -> Int32 {
        let copy = retryingInterrupts { open("/proc/self/fd/\(fd)", O_RDONLY | O_CLOEXEC) }
        guard copy >= 0 else { return fd }
        owned.append(copy)
        return copy
    }

    /// For a connected socket one that is connected to nobody: nothing that is
    /// done to it reaches the peer. Any other descriptor stands for itself.
    mutating func standIn(_ fd: Int32) throws(VMMError) -> Int32 {
        guard let type = DescriptorKind.option(fd, SO_TYPE), DescriptorKind.option(fd, SO_ACCEPTCONN) == 0 else {
            return fd
        }
        var pair: [Int32] = [0, 0]
        guard socketpair(AF_UNIX, type | Int32(SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue), 0, &pair) == 0 else {
            throw .system("cannot make a stand-in for a connection")
        }
        owned += pair
        return pair[0]
    }

    mutating func close() {
        for fd in owned { Glibc.close(fd) }
        owned = []
    }
}
