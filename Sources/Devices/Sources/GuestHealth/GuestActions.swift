import BatonRuntime

/// What becomes of a machine whose guest has panicked: `-action panic=`, with QEMU's names.
public enum PanicAction: String, CaseIterable {
    /// The VM stops, and the VMM stays.
    case pause
    /// The VM stops, and the VMM ends; with `-no-shutdown` as `pause`.
    case shutdown
    /// As `shutdown`, with the exit status 1.
    case exitFailure = "exit-failure"
    /// The guest goes on.
    case none
}

/// What becomes of a machine whose watchdog has expired: `-action watchdog=`, with QEMU's names.
public enum WatchdogAction: String, CaseIterable {
    /// The machine is reset; with `-no-reboot` the VMM ends.
    case reset
    /// The guest is asked to shut down, as by `system_powerdown`.
    case shutdown
    /// The machine is off: the VMM ends, or with `-no-shutdown` the VM stops.
    case poweroff
    /// The VM stops, and the VMM stays.
    case pause
    /// A line of the log, and the guest goes on.
    case debug
    /// The guest goes on.
    case none
    /// Each CPU gets a non-maskable interrupt, where it has one.
    case injectNMI = "inject-nmi"
}

/// What the VMM does when something is wrong with the guest. May be changed at any time, with the VM lock held.
public final class GuestActions: MachineParts {
    public var panic = PanicAction.shutdown
    public var watchdog = WatchdogAction.reset

    public init() {}
}

extension VirtualMachine {
    /// What this machine's devices do when something is wrong with the guest.
    public var guestActions: GuestActions { parts(GuestActions.self) }

    /// Carries out what is to be done when a watchdog has expired. Emits WATCHDOG. Main thread.
    public func watchdogExpired() {
        let action = guestActions.watchdog
        emit("WATCHDOG", ["action": .string(action.rawValue)])
        switch action {
        case .reset: guestRequestedReset()
        case .shutdown: requestPowerdown()
        case .poweroff: guestRequestedShutdown(status: 0)
        case .pause: stop(.watchdog)
        case .debug: Report.warning("watchdog: timer fired")
        case .none: break
        case .injectNMI:
            if accelerator?.injectNMI() != true {
                Report.warning("watchdog: the CPUs have no non-maskable interrupt")
            }
        }
    }
}
