import BatonRuntime

/// `query-status`, `stop`, `cont`, `quit`, `system_reset`, `system_powerdown`,
/// in QMP and HMP, and the events that they cause.
func registerRunControl(_ vm: VirtualMachine) throws(VMMError) {
    let commands = vm.commands
    let state = QMPType.enumeration(name: "RunState", values: RunState.allCases.map(\.rawValue))
    try commands.add(
        QMPCommand.query(
            "query-status",
            returns: .object(name: "StatusInfo", members: [QMPMember("running", .bool), QMPMember("status", state)])
        ) { [unowned vm] in
            ["running": .bool(vm.isRunning), "status": .string(vm.runState.rawValue)]
        })
    try commands.add(
        HMPCommand.info("status", "show the current VM status (running|paused)") { [unowned vm] in
            guard !vm.isRunning else { return "VM status: running\n" }
            return "VM status: paused" + (vm.runState == .paused ? "\n" : " (\(vm.runState.rawValue))\n")
        })

    try addAction(commands, "stop", "stop emulation") { [unowned vm] () throws(VMMError) in
        if vm.runState == .inmigrate { vm.autostart = false }
        if vm.isRunning { vm.stop() }
    }
    try addAction(commands, "cont", "resume emulation") { [unowned vm] () throws(VMMError) in
        // As in QEMU: it starts when its state has come.
        if vm.runState == .inmigrate {
            vm.autostart = true
        } else {
            // What to do, before what `start` says of why.
            if let refusal = vm.resetRefusal { throw refusal }
            try vm.start()
        }
    }
    try addAction(commands, "quit", "quit the emulator") { [unowned vm] () throws(VMMError) in vm.requestQuit() }
    try addAction(commands, "system_reset", "reset the system") { [unowned vm] () throws(VMMError) in
        try vm.requestReset()
    }
    try addAction(commands, "system_powerdown", "send system power down event") {
        [unowned vm] () throws(VMMError) in
        if vm.isRunning { vm.requestPowerdown() }
    }

    let cause = QMPType.enumeration(
        name: "ShutdownCause",
        values: [
            "none", "host-error", "host-qmp-quit", "host-qmp-system-reset", "host-signal", "host-ui",
            "guest-shutdown", "guest-reset", "guest-panic", "subsystem-reset", "snapshot-load",
        ])
    let ended = QMPType.object(
        name: "q_obj_SHUTDOWN-arg", members: [QMPMember("guest", .bool), QMPMember("reason", cause)])
    commands.addEvent("SHUTDOWN", data: ended)
    commands.addEvent("RESET", data: ended)
    for name in ["POWERDOWN", "STOP", "RESUME"] { commands.addEvent(name) }
}

private func addAction(
    _ commands: CommandRegistry, _ name: String, _ help: String, _ action: @escaping () throws(VMMError) -> Void
) throws(VMMError) {
    try commands.add(
        QMPCommand(name) { (_: JSONObject) throws(VMMError) -> JSON in
            try action()
            return [:]
        })
    try commands.add(
        HMPCommand(name, help: help) { (_: String) throws(VMMError) -> String in
            try action()
            return ""
        })
}
