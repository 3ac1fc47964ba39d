import BatonBase
import BatonMachine
import Glibc

/// Where a VM is between two of its operations: one at a time, and each begins in `idle` but those that are named.
///
///     idle ── cpr-save ──▶ saved ── cpr-exec ──▶ busy ──▶ idle, in the child that goes on; or this process ends
///       │                    └── cont, system_reset ──▶ idle
///       ├── cpr-load ───────▶ idle, or awaitingState if it fails
///       ├── cpr-preflight ──▶ busy ──▶ idle
///       └── cpr-update ─────▶ busy ──▶ idle, if it fails; or this process ends; or handedOver
///     awaitingState ── cpr-load, or the state of an update ──▶ idle
///
/// Main thread only.
enum CprStep {
    case idle
    /// A process that takes a guest over, until it has: the guest must not be started or reset before. So is one whose
    /// client has asked for a guest that could not be loaded.
    case awaitingState
    /// The guest stands, and a client has its checkpoint. With its state before.
    case saved(any CprMode, stateBefore: RunState)
    /// Something goes on beside the guest.
    /// - Parameter cancel: ends it, with a reason; nil when it cannot be ended now.
    case busy(String, cancel: ((String) -> Void)?)
    /// The guest is another process', and this one has nothing left but its monitors.
    case handedOver

    /// Why nothing else can begin; nil when it can.
    var refusal: VMMError? {
        switch self {
        case .idle: nil
        case .awaitingState:
            VMMError(
                "the VM waits for cpr-load",
                hint: HandoverLink.ofThisProcess == nil
                    ? "Give it its state with cpr-load. For another guest end this VMM, and start it anew."
                    : "Give it its state with cpr-load, or have the VMM before go on with the guest by migrate_cancel.")
        case .saved: VMMError("cpr-save has been done already; use cpr-exec, cpr-load or cont")
        case .busy(let what, _): VMMError(what)
        case .handedOver: VMMError("the guest was handed over to another VMM")
        }
    }
}

extension CprController {
    /// Whether `cpr-load` has succeeded or was never due: until then the guest
    /// of the process before must not be started or reset.
    public var awaitsLoad: Bool {
        if case .awaitingState = step { true } else { false }
    }

    /// Whether the guest is another process' now, and this one has nothing left but
    /// its monitors.
    public var isHandedOver: Bool {
        if case .handedOver = step { true } else { false }
    }

    /// Why the machine's configuration must not be changed now, as a guest is on its way; nil when it may.
    public var refusal: VMMError? { step.refusal }

    /// Refuses another step for the time of `body`.
    func beside<Result>(_ what: String, _ body: () throws(VMMError) -> Result) throws(VMMError) -> Result {
        step = .busy(what, cancel: nil)
        defer { if case .busy = step { step = .idle } }
        return try body()
    }

    /// Lets a client end what is in hand for the time of `body`.
    func cancellable<Result>(
        by cancel: @escaping (String) -> Void, _ body: () throws(VMMError) -> Result
    ) throws(VMMError) -> Result {
        guard case .busy(let what, _) = step else { return try body() }
        step = .busy(what, cancel: cancel)
        defer { if case .busy = step { step = .busy(what, cancel: nil) } }
        return try body()
    }

    /// Ends the update or the preflight in hand, while the guest runs: whoever has asked for it
    /// gets an error.
    /// - Returns: false when there is none that could be ended now.
    public func cancelUpdate() -> Bool {
        if awaitsLoad, !isTrial, HandoverLink.ofThisProcess != nil {
            // The VMM before still has the guest. Whoever asked is answered first.
            vm.loop.later {
                CprController.giveUp(VMMError("it was cancelled"))
                exit(1)
            }
            return true
        }
        guard case .busy(_, let cancel?) = step else { return false }
        cancel("it was cancelled")
        return true
    }

    /// Takes a save back: the guest goes on here if it ran when it was saved, and else is as it was.
    /// - Returns: false when there is no save that could be taken back.
    public func takeBackSave() -> Bool {
        guard case .saved(_, let stateBefore) = step, vm.runState == .saveVM else { return false }
        voidSave()
        giveBack(stateBefore)
        return true
    }

    /// The guest was started again (`cont`) or reset after a save: the save is void.
    func voidSave() {
        guard case .saved = step else { return }
        step = .idle
        letGoOfKept()
        announce(.saveFailed)
    }
}
