import BatonBase

/// The steps of an update that modules and parts are told of.
public enum CprPhase: String {
    /// What would be preserved if the VM were saved now, for `query-cpr` and
    /// for a preflight: fds are saved and state is handed over as in `exec`,
    /// and nothing else changes. The guest may be running; no other phase
    /// follows. In the new process of a preflight no phase is told at all, and
    /// whatever is behind an inherited descriptor must not be touched:
    /// `CprController.isTrial`.
    case survey
    /// The guest is stopped and its devices are drained; the checkpoint is
    /// about to be written.
    case save
    /// The new binary is about to be executed. The last step in this process.
    case exec
    /// The save or the exec failed; the guest resumes in this process.
    case saveFailed = "save-failed"
    /// The checkpoint is about to be loaded in the new process.
    case load
    case loadFailed = "load-failed"
    /// The new process owns the guest.
    case commit
}

/// Keeps one kind of file descriptor, and what lies behind it, alive over an
/// update. Implemented by modules named `preserver-NAME`.
///
/// While one of its methods runs, nothing else does. `.save`, `.exec` and
/// `.load` come on the main thread, where the lifeboat ends what hangs; the
/// others in a thread that the main one waits for (`BoundedCalls`).
public protocol FdPreserver: ModulePart {
    /// Reasons why this preserver's fds could not be kept by `mode` now; empty
    /// when they can. Called while the guest runs.
    func blockers(mode: String) -> [String]
    /// Takes part in the updates of this VM from now on: called once, when the
    /// machine stands and before anything changes hands. The place for `onChange`.
    func takesPart(_ cpr: CprController)
    /// Told of each step. In `.save` and `.exec` the preserver saves its fds in
    /// `cpr.fds`; an error there ends the update and the guest goes on. In
    /// other phases an error is reported and changes nothing.
    func notify(_ phase: CprPhase, cpr: CprController) throws(VMMError)
}

extension FdPreserver {
    public func blockers(mode: String) -> [String] { [] }
    public func takesPart(_ cpr: CprController) {}
}
