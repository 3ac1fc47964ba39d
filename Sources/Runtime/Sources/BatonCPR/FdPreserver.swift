import BatonBase

/// The steps of an update that modules and parts are told of. `survey`, `save`,
/// `exec` and `saveFailed` come in the old VMM, which has the guest; `load`,
/// `loadFailed` and `commit` in the new one.
public enum CprPhase: String {
    /// What would be preserved if the VM were saved now, for `query-cpr`, for a
    /// preflight, and for a new VMM that is about to be executed: fds are saved and
    /// state is handed over as in `exec`, and nothing else changes. The guest may
    /// be running, and goes on. In the new process of a preflight no phase is told
    /// at all, and whatever is behind an inherited descriptor must not be touched:
    /// `CprController.isTrial`.
    case survey
    /// The guest is stopped and its devices are drained; the checkpoint is
    /// about to be written.
    case save
    /// The guest is stopped, and the new VMM is ready: fds are saved and state is
    /// handed over as they are now. The last step in the old VMM.
    case exec
    /// Nothing came of the update, and the guest goes on in this process. Without a
    /// `save` before it when the new VMM failed during its start.
    case saveFailed = "save-failed"
    /// The checkpoint is about to be loaded in the new VMM. What has changed since
    /// the survey has been taken over (`onChange`).
    case load
    case loadFailed = "load-failed"
    /// The new VMM owns the guest.
    case commit
}

/// Keeps one kind of file descriptor, and what lies behind it, alive over an
/// update. Implemented by modules named `preserver-NAME`.
///
/// While one of its methods runs, nothing else does. `blockers` and `notify` come in
/// a thread that the main one waits for (`BoundedCalls`), but for a preserver that
/// never hangs; `takesPart` comes on the main thread.
public protocol FdPreserver: ModulePart {
    /// Reasons why this preserver's fds could not be kept by `mode` now; empty
    /// when they can. Called while the guest runs.
    func blockers(mode: String) -> [String]
    /// Takes part in the updates of this VM from now on: called once, when the
    /// machine stands and before anything changes hands. The place for `onChange`:
    /// without it, what is first asked for in `.load` is what the survey gave.
    func takesPart(_ cpr: CprController)
    /// A save begins, or an update whose new VMM is about to be started; the guest runs. What the next process can have
    /// only when this one has let go of it, and what the exec of the new VMM would end, goes from here on if that takes
    /// long: what is called returns at once, a device says how long it takes (`Device.isBusy`), and the guest is not
    /// stopped before. `.saveFailed` follows when nothing comes of it. On the main thread.
    func letGo()
    /// Told of each step. In `.save` and `.exec` the preserver saves its fds in
    /// `cpr.fds`; an error there ends the update and the guest goes on. In
    /// other phases an error is reported and changes nothing.
    func notify(_ phase: CprPhase, cpr: CprController) throws(VMMError)
}

extension FdPreserver {
    public func blockers(mode: String) -> [String] { [] }
    public func takesPart(_ cpr: CprController) {}
    public func letGo() {}
}
