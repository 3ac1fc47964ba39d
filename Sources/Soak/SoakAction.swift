/// What is done to a machine, as a script names it.
package enum SoakAction: String, CaseIterable {
    /// `cpr-update`, to the same VMM unless `fault` or `probe` says otherwise.
    case update
    /// `cpr-update`, whose new VMM gets SIGKILL some microseconds after the command.
    case kill
    /// `cpr-save`, `cpr-exec`, `cpr-load`.
    case steps
    /// `cpr-update` to a VMM that waits at a socket.
    case transfer
    /// The mode `reboot`: a save, the end of the process, a new start, a load.
    case reboot
    /// The file system of the disk has no room, until the guest has been stopped for that.
    case fullDisk = "full-disk"
    /// An update while the client of the human monitor has asked for much, and reads nothing.
    case slowMonitor = "slow-monitor"
    /// Updates while nobody reads what the guest writes to its serial port.
    case slowSerial = "slow-serial"
    /// The process that serves the disk stands still for a while.
    case slowStorage = "slow-storage"
    /// A device, a back end, or both come.
    case plug
    /// What came with `plug` goes.
    case unplug
    /// `stop`, and `cont` later.
    case stop
    /// `system_reset`.
    case reset
    /// QMP clients that come and go, some of which say half of something.
    case clients
    /// Ends all of the machine's processes: for tests of the soak itself, which draws it never.
    case lose

    /// Options with their values; an empty list stands for any number.
    package var options: [String: [String]] {
        switch self {
        case .update:
            [
                "preflight": ["off"], "fault": SuccessorFault.allCases.map(\.rawValue), "seed": [],
                "probe": SoakProbe.allCases.map(\.rawValue),
            ]
        case .kill: ["after": []]
        case .steps: ["then": StepsEnd.allCases.map(\.rawValue)]
        case .transfer:
            ["fault": TransferFault.allCases.map(\.rawValue), "probe": SoakProbe.inTransfers.map(\.rawValue)]
        case .reboot, .reset, .lose: [:]
        case .fullDisk, .stop: ["update": ["yes"]]
        case .slowMonitor: ["commands": []]
        case .slowSerial: ["updates": []]
        case .slowStorage: ["during": StandstillDeed.allCases.map(\.rawValue)]
        case .plug: ["what": Pluggable.allCases.map(\.rawValue)]
        case .unplug: ["what": Pluggable.allCases.map(\.rawValue), "update": ["yes"]]
        case .clients: ["count": []]
        }
    }

    /// Options without which it means nothing.
    package var required: Set<String> {
        switch self {
        case .kill: ["after"]
        case .slowMonitor: ["commands"]
        case .slowSerial: ["updates"]
        case .plug, .unplug: ["what"]
        case .clients: ["count"]
        default: []
        }
    }
}

/// A phase of the new VMM, and what the harness' probe in it does there.
package enum SoakProbe: String, CaseIterable {
    case registerKill = "register-kill"
    case registerCrash = "register-segv"
    case registerExit = "register-exit"
    case registerRefuse = "register-throw"
    case registerHang = "register-stop"
    case loadKill = "load-kill"
    case loadCrash = "load-segv"
    case loadExit = "load-exit"
    case loadRefuse = "load-throw"
    case loadHang = "load-stop"

    /// Those of a VMM that waits already.
    package static var inTransfers: [SoakProbe] { allCases.filter { $0.rawValue.hasPrefix("load-") } }
    /// A line of the probe's file.
    package var instruction: String { rawValue.replacing("-", with: " ") }
    package var hangs: Bool { self == .registerHang || self == .loadHang }
}

/// What ends the three steps, if not the load.
package enum StepsEnd: String, CaseIterable {
    /// The save is taken back.
    case cont
    /// The new VMM is told to give up.
    case cancel
    /// The new VMM, which waits for the load, is killed.
    case kill
}

/// What is wrong with a VMM that waits for a guest.
package enum TransferFault: String, CaseIterable {
    case nobody, killed, stopped
    case lacksADevice = "lacks-a-device"
    case otherMemory = "other-memory"
}

/// What comes and goes.
package enum Pluggable: String, CaseIterable {
    case rng, disk, net, chardev
}
