import BatonBase
import BatonMachine
import CBaton
import Glibc

/// What a mode that promises `survivesHostUpdate` keeps while no VMM runs: descriptors of
/// memory files, all of which are needed.
public struct KeptGuest {
    /// The CPR state: whose guest it is, and of what size each part of `memory` is.
    public var state: Int32
    /// The state of the devices.
    public var checkpoint: Int32
    /// Guest memory, in the order of `CprController.memoryToKeep`.
    public var memory: [Int32]
    /// Of one that was found: where it stays should this process fail, and how to give it up, in a sentence for whoever
    /// reads that failure.
    public var place: String

    public init(state: Int32, checkpoint: Int32, memory: [Int32], place: String = "") {
        self.state = state
        self.checkpoint = checkpoint
        self.memory = memory
        self.place = place
    }

    package func closeAll() { for fd in [state, checkpoint] + memory { close(fd) } }
}

extension CprState {
    /// Of a state that is kept: whose guest it is, and when it was saved.
    struct Kept {
        /// `-name` and `-uuid`; empty without.
        var name: String
        var uuid: String
        /// `HostBoot.id`.
        var boot: String
        /// CLOCK_REALTIME in nanoseconds.
        var savedAt: Int64

        static let section = "kept"

        func put(into writer: inout StateWriter) {
            writer.put("name", name)
            writer.put("uuid", uuid)
            writer.put("boot-id", boot)
            writer.put("realtime-ns", UInt64(bitPattern: savedAt))
        }

        /// Why the guest is not that of a VM; nil when it may be.
        func mismatch(name otherName: String?, uuid otherUUID: String?) -> VMMError? {
            func check(_ what: String, _ kept: String, _ own: String?) -> VMMError? {
                guard let own, !kept.isEmpty, kept != own else { return nil }
                return VMMError(
                    "the guest that was found is that of the VM with the \(what) '\(kept)', not '\(own)'",
                    hint: "Start the VMM with the command line that the guest was saved with.")
            }
            return check("uuid", uuid, otherUUID) ?? check("name", name, otherName)
        }
    }
}

extension CprState.Kept {
    init(from reader: StateReader) throws(VMMError) {
        name = try reader.string("name")
        uuid = try reader.string("uuid")
        boot = try reader.string("boot-id")
        savedAt = Int64(try reader.unsigned("realtime-ns", in: 0...UInt64(Int64.max)))
        try reader.finish()
    }
}

/// A guest that stays while no VMM runs.
extension CprController {
    /// The blocks that a mode which promises `survivesHostUpdate` keeps: all but those
    /// whose file outlives the host's kernel by itself. The descriptors are borrowed.
    public var memoryToKeep: [RAMRecord] {
        memory.blocks.filter { $0.isPreservable && !$0.isPersistent }.map {
            RAMRecord(
                name: $0.name, usedLength: $0.usedLength, maxLength: $0.maxLength, alignment: $0.alignment, fd: $0.fd)
        }
    }

    // MARK: In the process that saves

    /// What takes long, while the guest runs.
    func prepareToKeep(_ mode: any CprMode) throws(VMMError) {
        guard mode.promises.contains(.survivesHostUpdate) else { return }
        keepingMode = mode
        try call(mode, "prepare") { [unowned self] () throws(VMMError) in try mode.prepare(cpr: self) }
    }

    /// Has the mode keep the stopped guest.
    func keep(_ container: SectionContainer, contents: [RAMBlock], _ mode: any CprMode) throws(VMMError) {
        guard mode.promises.contains(.survivesHostUpdate) else { return }
        let checkpoint = OwnedFD(adopting: cbaton_memfd_create("cpr-checkpoint", 0))
        try Checkpoint.write(container, contents: contents, toMemfd: checkpoint.raw)
        times.saved = EventLoop.now
        var state = stateForExec(mode: mode)
        let memory = memoryToKeep
        state.makeKept(
            memory,
            of: CprState.Kept(
                name: vm.name ?? "", uuid: vm.givenUUID ?? "", boot: HostBoot.id, savedAt: cbaton_realtime_ns()))
        let stateFD = OwnedFD(adopting: cbaton_memfd_create("cpr-state", 0))
        guard stateFD.raw >= 0 else { throw .system("failed to create memfd 'cpr-state'") }
        try FD.writeAll(stateFD.raw, state.encoded(), to: "the CPR state")
        let guest = KeptGuest(state: stateFD.raw, checkpoint: checkpoint.raw, memory: memory.map(\.fd))
        try call(mode, "keep") { [unowned self] () throws(VMMError) in try mode.keep(guest, cpr: self) }
    }

    /// The guest goes on here: nobody may find what was kept of it.
    func letGoOfKept() {
        guard let mode = keepingMode else { return }
        keepingMode = nil
        _ = calls.call([mode], "let-go", limit: callLimit) { [unowned self] _ in mode.letGo(cpr: self) }
    }

    // MARK: In the process that finds it

    /// Looks for a guest that a process before this one has left with an enabled mode, when
    /// nothing of the machine is there yet. With one, this process takes it over.
    /// - Parameter loadsAtOnce: whether it goes on when the machine stands, or waits for `cpr-load`.
    /// - Throws: why a guest that there is cannot be had; it stays where it is.
    public func findKeptGuest(loadsAtOnce: Bool) throws(VMMError) {
        guard inherited == nil else { return }
        for mode in enabledModes where mode.promises.contains(.survivesHostUpdate) {
            let found = try call(mode, "find") { [unowned self] () throws(VMMError) in try mode.find(cpr: self) }
            guard let found else { continue }
            do throws(VMMError) {
                try takeOver(found, mode, loadsAtOnce: loadsAtOnce)
            } catch {
                found.closeAll()
                throw error.prefixed("cannot take over the guest that mode '\(mode.name)' has kept")
            }
            return
        }
    }

    private func takeOver(_ guest: KeptGuest, _ mode: any CprMode, loadsAtOnce: Bool) throws(VMMError) {
        finishingMode = mode
        keptPlace = guest.place
        guard lseek(guest.state, 0, SEEK_SET) == 0 else { throw .system("cannot read the guest's state") }
        var state = try CprState(
            parsing: try FD.readAll(guest.state, limit: CprState.sizeLimit, from: "the guest's state"))
        guard let kept = state.kept else { throw VMMError("the state is not that of a guest that was kept") }
        guard state.mode == mode.name else {
            throw VMMError("the guest was saved in mode '\(state.mode)', not '\(mode.name)'")
        }
        if let mismatch = kept.mismatch(name: vm.name, uuid: vm.givenUUID) { throw mismatch }
        guard state.passedFDs == guest.memory.count else {
            throw VMMError("\(guest.memory.count) of \(state.passedFDs) blocks of guest memory are there")
        }
        state.adopt(guest.memory)
        close(guest.state)
        state.times.cameFrom(kept)
        state.times.started = times.started
        if loadsAtOnce { state.checkpointFD = guest.checkpoint } else { keptCheckpoint = guest.checkpoint }
        adopt(state)
    }

    /// Whether this process has found a guest that no VMM has any more, and has yet to make it its own.
    public var hasKeptGuest: Bool { finishingMode != nil }

    /// The failure of a process that may have found a guest and not made it its own: says that the guest is still there.
    public func explained(_ failure: VMMError) -> VMMError {
        guard finishingMode != nil, !keptPlace.isEmpty else { return failure }
        return VMMError(failure.message, hint: (failure.hint.map { $0 + " " } ?? "") + keptPlace)
    }

    /// The checkpoint that was kept, for a file that is not there; nil when there is such a file.
    func checkpoint(insteadOf path: String) -> Int32? {
        guard let keptCheckpoint, !FDSets.isName(path), access(path, F_OK) != 0, errno == ENOENT else { return nil }
        return keptCheckpoint
    }

    /// Why `cpr-load` has no guest to load in a mode that keeps it; nil when it may have.
    func absenceOfKept(_ mode: any CprMode) -> VMMError? {
        let promises = mode.promises
        guard inherited == nil, promises.contains(.survivesHostUpdate), !promises.contains(.survivesHostReboot) else {
            return nil
        }
        if let reason = blockers(mode).first {
            return reason.prefixed("there is no guest to load in mode '\(mode.name)'")
        }
        return VMMError(
            "there is no guest to load in mode '\(mode.name)': none of this VM was found when this process was started",
            hint: "Guest memory is not in the checkpoint, but kept by name: start the VMM with the -name, -uuid and "
                + "options of the one that was saved, once. A guest that was loaded is no longer kept.")
    }

    /// The last step before the guest is this process' own.
    func finishKept() throws(VMMError) {
        guard let mode = finishingMode else { return }
        try call(mode, "finish") { [unowned self] () throws(VMMError) in try mode.finish(cpr: self) }
        finishingMode = nil
        if let keptCheckpoint { close(keptCheckpoint) }
        keptCheckpoint = nil
    }
}
