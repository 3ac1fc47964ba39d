import BatonRuntime

/// A monitor whose session goes on in the next process.
protocol ResumableMonitor: ChardevFrontend {
    var chardev: Chardev { get }
    /// Tells several monitors on one multiplexer from each other; from 0.
    var number: Int { get }
    /// Whether a command of the client is being carried out.
    var isExecuting: Bool { get }
    /// The session, for the next process.
    func handOver() -> StateWriter
    /// Goes on with the session as it is now, in place of what was handed over
    /// when this process was executed.
    /// - Parameter state: nil when there is no session any more.
    func takeOver(_ state: StateReader?) throws(VMMError)
    /// This process has the guest, or its machine stands and waits for the
    /// checkpoint: answers the command that replaced the process before.
    func resume()
    /// Whether the session goes on before this process has the guest, for a client that is to say `cpr-load`.
    var answersBeforeLoad: Bool { get }
    /// Nothing became of the update, and the guest is back in this process.
    /// - Parameter answered: the new process has gone on with the session.
    func takenBack(answered: Bool)
}

extension ResumableMonitor {
    var answersBeforeLoad: Bool { true }
    fileprivate var partName: String { MonitorUpdate.partName(chardev, number) }
}

/// Keeps the sessions of monitors over an update.
public enum MonitorUpdate {
    fileprivate static func partName(_ chardev: Chardev, _ number: Int) -> String { "monitor/\(chardev.id)/\(number)" }

    /// Takes part in the updates of the VM. Follows the chardevs' registration.
    public static func register(vm: VirtualMachine, cpr: CprController) {
        for monitor in monitors(vm) {
            cpr.onChange(of: monitor.partName, fds: nil) { [unowned monitor] changes throws(VMMError) in
                try monitor.takeOver(changes.state)
            }
        }
        cpr.onPhase { [unowned vm, unowned cpr] phase throws(VMMError) in
            switch phase {
            case .survey, .exec:
                for monitor in monitors(vm) where monitor.chardev.isOpen && goesOver(monitor, cpr) {
                    if phase == .exec, cpr.closesConnection, monitor.isExecuting {
                        monitor.chardev.forgetConnection(in: cpr)
                    } else {
                        cpr.handOver(monitor.partName, monitor.handOver())
                    }
                }
            case .saveFailed:
                for monitor in monitors(vm) { monitor.takenBack(answered: cpr.successorAnswered) }
            case .commit: for monitor in monitors(vm) { monitor.resume() }
            default: break
            }
        }
    }

    /// Whether the new VMM goes on with the session.
    private static func goesOver(_ monitor: any ResumableMonitor, _ cpr: CprController) -> Bool {
        // As the chardev of any other front end.
        guard monitor.isMonitor else { return true }
        return switch cpr.monitorSockets {
        case .handedOver: true
        case .ended: false
        case .connectionsKept, .kept: monitor.chardev.isShared
        }
    }

    /// The machine stands: a client that is to say `cpr-load` is answered.
    public static func machineStands(vm: VirtualMachine) {
        for monitor in monitors(vm) where monitor.answersBeforeLoad {
            monitor.chardev.release()
            monitor.resume()
        }
    }

    private static func monitors(_ vm: VirtualMachine) -> [any ResumableMonitor] {
        var monitors = vm.monitors.compactMap { $0 as? any ResumableMonitor }
        if let stub = vm.parts(GDBServer.self).stub { monitors.append(stub) }
        return monitors
    }

    /// Whether what its chardev tells a monitor is no news to its client, as this
    /// process has not taken over yet.
    static func isTakingOver(_ vm: VirtualMachine) -> Bool { vm.cpr?.awaitsLoad == true && vm.cpr?.isSuccessor == true }

    /// The number of the next monitor on a chardev.
    static func nextNumber(on chardev: Chardev, vm: VirtualMachine) -> Int {
        monitors(vm).count { $0.chardev === chardev }
    }

    /// The session of the process before on the connection that `chardev` has;
    /// nil when there is none.
    static func session(on chardev: Chardev, number: Int, vm: VirtualMachine) throws(VMMError) -> StateReader? {
        guard chardev.isInherited, let inherited = vm.cpr?.inherited else { return nil }
        return try inherited.part(partName(chardev, number))
    }
}
