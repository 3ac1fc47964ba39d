import BatonRuntime
import GuestHealth

/// What is done about what happens to the guest: `-action` and its older forms, and the commands that change it. What a
/// client has changed stays so over an update.
enum ActionOptions {
    static func apply(_ invocation: Invocation, vm: VirtualMachine) throws(VMMError) {
        vm.noReboot = invocation.has("no-reboot")
        vm.noShutdown = invocation.has("no-shutdown")
        let words = invocation.all("action") + (invocation.last("watchdog-action").map { ["watchdog=\($0)"] } ?? [])
        for text in words {
            let options = try KeyValueOptions(text)
            try Actions(options).apply(to: vm)
            try options.finish()
        }
        guard let state = try vm.handover?.inheritedPart(part) else { return }
        try take(state, vm)
    }

    /// What to change; nil what stays.
    private struct Actions {
        var reboot: Reboot?
        var shutdown: Shutdown?
        var panic: PanicAction?
        var watchdog: WatchdogAction?

        enum Reboot: String, CaseIterable { case reset, shutdown }
        enum Shutdown: String, CaseIterable { case poweroff, pause }

        init(_ options: KeyValueOptions) throws(VMMError) {
            reboot = try options.enumeration("reboot", Reboot.self)
            shutdown = try options.enumeration("shutdown", Shutdown.self)
            panic = try options.enumeration("panic", PanicAction.self)
            watchdog = try options.enumeration("watchdog", WatchdogAction.self)
        }

        func apply(to vm: VirtualMachine) {
            if let reboot { vm.noReboot = reboot == .shutdown }
            if let shutdown { vm.noShutdown = shutdown == .pause }
            if let panic { vm.guestActions.panic = panic }
            if let watchdog { vm.guestActions.watchdog = watchdog }
        }
    }

    // MARK: Commands

    private static func enumeration<Value: RawRepresentable & CaseIterable>(
        _ name: String, _ type: Value.Type
    ) -> QMPType where Value.RawValue == String {
        .enumeration(name: name, values: type.allCases.map(\.rawValue))
    }

    /// Registers the commands and events, and takes part in updates.
    static func register(vm: VirtualMachine) throws(VMMError) {
        let watchdog = enumeration("WatchdogAction", WatchdogAction.self)
        // A client's word holds over an update; without one the new command line's.
        var isChanged = try vm.handover?.inheritedPart(part) != nil
        func change(_ options: KeyValueOptions) throws(VMMError) -> JSON {
            try Actions(options).apply(to: vm)
            isChanged = true
            return [:]
        }
        try vm.commands.add(
            QMPCommand(
                "set-action",
                arguments: [
                    QMPMember("reboot", enumeration("RebootAction", Actions.Reboot.self), optional: true),
                    QMPMember("shutdown", enumeration("ShutdownAction", Actions.Shutdown.self), optional: true),
                    QMPMember("panic", enumeration("PanicAction", PanicAction.self), optional: true),
                    QMPMember("watchdog", watchdog, optional: true),
                ]
            ) { arguments throws(VMMError) in try change(try KeyValueOptions(arguments)) })
        try vm.commands.add(
            QMPCommand("watchdog-set-action", arguments: [QMPMember("action", watchdog)]) {
                arguments throws(VMMError) in
                try change(try KeyValueOptions("watchdog=\(arguments["action"]?.stringValue ?? "")"))
            })
        try vm.commands.add(
            HMPCommand("watchdog_action", parameters: "action", help: "change the watchdog action") {
                line throws(VMMError) in
                _ = try change(try KeyValueOptions("watchdog=\(line)"))
                return ""
            })
        vm.commands.addEvent(
            "WATCHDOG", data: .object(name: "q_obj_WATCHDOG-arg", members: [QMPMember("action", watchdog)]))
        let panicked = QMPType.enumeration(name: "GuestPanicAction", values: ["pause", "poweroff", "run"])
        for name in ["GUEST_PANICKED", "GUEST_CRASHLOADED"] {
            vm.commands.addEvent(
                name, data: .object(name: "q_obj_\(name)-arg", members: [QMPMember("action", panicked)]))
        }
        vm.commands.addEvent("GUEST_PVSHUTDOWN")

        guard let handover = vm.handover else { return }
        handover.takePart(
            handOver: { [unowned vm, unowned handover] () throws(VMMError) in
                guard isChanged else { return }
                var writer = StateWriter()
                writer.put("no-reboot", vm.noReboot)
                writer.put("no-shutdown", vm.noShutdown)
                writer.put("panic", vm.guestActions.panic.rawValue)
                writer.put("watchdog", vm.guestActions.watchdog.rawValue)
                handover.handOver(part, writer)
            }, failed: {}, committed: {})
        handover.onChange(of: part, fds: nil) { [unowned vm] changes throws(VMMError) in
            guard let state = changes.state else { return }
            try take(state, vm)
            isChanged = true
        }
    }

    // MARK: Over an update

    private static let part = "actions"

    private static func take(_ state: StateReader, _ vm: VirtualMachine) throws(VMMError) {
        let (noReboot, noShutdown) = (try state.bool("no-reboot"), try state.bool("no-shutdown"))
        let options = try KeyValueOptions(
            "panic=\(try state.string("panic")),watchdog=\(try state.string("watchdog"))")
        let actions = try Actions(options)
        (vm.noReboot, vm.noShutdown) = (noReboot, noShutdown)
        actions.apply(to: vm)
    }
}
