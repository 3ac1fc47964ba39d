import BatonRuntime
import CBaton
import CLiveUpdate
import Glibc

/// The module `mode-liveupdate`.
@_cdecl("baton_module_query")
public func batonModuleQuery() -> UnsafeRawPointer {
    ModuleDescriptor.make(kind: "mode", name: "liveupdate", version: "1.0") { registrar throws(VMMError) in
        try registrar.add(LiveUpdateMode())
    }
}

/// Live update: the guest stays in memory while the host executes a new kernel.
///
/// `cpr-save FILE liveupdate` puts guest RAM, which is in memfds, and the checkpoint into a
/// session of Linux' Live Update Orchestrator. When the new kernel runs, a VMM with the same
/// command line finds the session by the VM's uuid or name, takes RAM in place, loads and
/// finishes the session. RAM in a file on a disk, or on persistent memory, stays there, as in
/// reboot mode.
final class LiveUpdateMode: CprMode {
    let name = "liveupdate"
    let summary = "keep the guest in memory while the host executes a new kernel (Live Update Orchestrator)"
    let promises: CprModePromises = [.survivesHostUpdate]
    let neverHangs = true
    let allocatorHook: (any AllocatorHook)? = MemfdAllocator(hookName: "liveupdate")

    private var outgoing: OutgoingSession?
    private var incoming: IncomingSession?

    func blockers(cpr: CprController) -> [VMMError] {
        var found: [VMMError] = []
        do throws(VMMError) {
            try Orchestrator.check()
            _ = try Orchestrator.sessionName(of: cpr.vm)
        } catch {
            found.append(error)
        }
        return found + MemoryRules.blockers(cpr.memory, mode: name)
    }

    func prepare(cpr: CprController) throws(VMMError) {
        letGo(cpr: cpr)
        let name = try Orchestrator.sessionName(of: cpr.vm)
        let preparation = Preparation(name, store: cpr.descriptorStore, memory: cpr.memoryToKeep)
        // The kernel takes its time for each page.
        cpr.vm.run(beside: preparation.carryOut)
        outgoing = try preparation.session.get()
    }

    func keep(_ guest: KeptGuest, cpr: CprController) throws(VMMError) {
        guard let outgoing else { throw VMMError("no session has been prepared") }
        try outgoing.preserve(guest)
    }

    func letGo(cpr: CprController) {
        outgoing?.drop()
        outgoing = nil
    }

    func find(cpr: CprController) throws(VMMError) -> KeptGuest? {
        for name in Orchestrator.sessionNames(of: cpr.vm) {
            guard let session = try IncomingSession(name, store: cpr.descriptorStore) else { continue }
            incoming = session
            return try session.guest()
        }
        return nil
    }

    func finish(cpr: CprController) throws(VMMError) {
        try incoming?.finish()
        incoming = nil
    }
}

/// What is done beside the guest. One thread at a time.
private final class Preparation {
    private let name: String
    private let store: (any DescriptorStore)?
    private let memory: [RAMRecord]
    private(set) var session: Result<OutgoingSession, VMMError> = .failure(VMMError("no session has been prepared"))

    init(_ name: String, store: (any DescriptorStore)?, memory: [RAMRecord]) {
        self.name = name
        self.store = store
        self.memory = memory
    }

    func carryOut() {
        session = Result { () throws(VMMError) in
            let session = try OutgoingSession(name, store: store)
            try session.preserve(memory: memory)
            return session
        }
    }
}
