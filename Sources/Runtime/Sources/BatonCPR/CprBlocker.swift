import BatonBase

/// Which modes a blocker keeps from saving the VM.
public enum CprBlockerScope {
    case everyMode
    /// Modes that make all of these promises.
    case promising(CprModePromises)
    /// Modes whose checkpoint is loaded when this process is gone.
    case outlivingProcess
    /// One mode, by its name.
    case named(String)

    func covers(_ mode: any CprMode) -> Bool {
        switch self {
        case .everyMode: true
        case .promising(let promises): mode.promises.isSuperset(of: promises)
        case .outlivingProcess: mode.promises.outlivesProcess
        case .named(let name): mode.name == name
        }
    }
}

/// A reason why the VM cannot be saved, as QEMU's `migrate_add_blocker_modes`
/// keeps them: added by the part that is the reason, and removed with it.
public final class CprBlocker {
    /// What `cpr-save` says.
    public let reason: VMMError
    public let scope: CprBlockerScope

    init(_ reason: VMMError, _ scope: CprBlockerScope) {
        self.reason = reason
        self.scope = scope
    }
}

extension CprController {
    /// Keeps the VM from being saved until `removeBlocker`.
    /// - Throws: with `-only-cpr-capable`, when an enabled mode would be
    ///   blocked: then nothing is added, and the part must not be either.
    @discardableResult
    public func addBlocker(_ reason: VMMError, scope: CprBlockerScope = .everyMode) throws(VMMError) -> CprBlocker {
        let blocker = CprBlocker(reason, scope)
        if onlyCapable, enabledModes.contains(where: scope.covers) { throw CprController.notCapable(reason) }
        addedBlockers.append(blocker)
        return blocker
    }

    /// Does nothing for a blocker that has been removed already.
    public func removeBlocker(_ blocker: CprBlocker) { addedBlockers.removeAll { $0 === blocker } }

    /// Why the VM could not be saved in a mode now; empty when it could.
    public func blockers(_ mode: any CprMode) -> [VMMError] {
        let preservers = registry.preservers
        let answers = calls.call([mode] + preservers, "check", limit: callLimit) { [unowned self] index -> [VMMError] in
            guard index > 0 else { return mode.blockers(cpr: self) }
            let preserver = preservers[index - 1]
            return preserver.blockers(mode: mode.name).map { VMMError($0).prefixed(preserver.name) }
        }
        return (memory.loss.map { [$0] } ?? []) + calls.late.map(\.error)
            + answers.flatMap { (try? $0.get()) ?? [] }
            + addedBlockers.filter { $0.scope.covers(mode) }.map(\.reason)
    }

    /// `-only-cpr-capable`: from here on nothing may be part of the VM that
    /// could not be updated in every mode that is enabled.
    /// - Throws: the first thing that could not, or that no mode is enabled.
    public func requireCapable() throws(VMMError) {
        guard !enabledModes.isEmpty else { throw VMMError("-only-cpr-capable requires -cpr-enable") }
        for mode in enabledModes {
            if let reason = blockers(mode).first { throw CprController.notCapable(reason) }
        }
        onlyCapable = true
    }

    private static func notCapable(_ reason: VMMError) -> VMMError {
        reason.prefixed("-only-cpr-capable specified, but")
    }
}
