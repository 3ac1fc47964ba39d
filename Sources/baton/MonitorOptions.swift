import BatonRuntime
import Chardev
import Monitor

/// `-monitor`, `-qmp`, `-qmp-pretty`, `-mon`, and `-metrics`.
enum MonitorOptions {
    static func start(_ invocation: Invocation, backends: Backends, vm: VirtualMachine) throws(VMMError) {
        for chardev in backends.sharedMonitors { try MonitorFactory.start(.readline, on: chardev, vm: vm) }
        var count = 0
        for option in invocation.inOrder(["monitor", "qmp", "qmp-pretty", "mon"]) {
            try invocation.at(option.place) { () throws(VMMError) in
                if option.name == "mon" { return try MonitorFactory.make(option.value, vm: vm) }
                let form = try ChardevFactory.makeShortForm(option.value, id: "compat_monitor\(count)", vm: vm)
                guard let chardev = form.chardev else { return }
                count += 1
                try MonitorFactory.start(
                    option.name == "monitor" ? .readline : .control, on: chardev,
                    pretty: option.name == "qmp-pretty", vm: vm)
            }
        }
    }

    /// `-metrics DEV`, as -qmp has it; a socket listens, and waits for nobody, unless DEV says otherwise.
    static func startMetrics(_ invocation: Invocation, vm: VirtualMachine) throws(VMMError) {
        for (index, value) in invocation.all("metrics").enumerated() {
            let form = try ChardevFactory.makeShortForm(listening(value), id: "metrics\(index)", vm: vm)
            if let chardev = form.chardev { try MetricsServer(vm: vm, chardev: chardev) }
        }
    }

    /// A socket that listens, and waits for nobody, unless the text says otherwise.
    private static func listening(_ text: String) -> String {
        let keys = text.split(separator: ",").dropFirst()
        guard text.hasPrefix("unix:") || text.hasPrefix("tcp:"), !keys.contains(where: { $0.hasPrefix("server") })
        else { return text }
        return text + ",server=on,wait=off"
    }

    /// `-gdb DEV` and `-s`, of which the last one holds; or what the process before was told by a monitor.
    static func startDebugger(_ invocation: Invocation, vm: VirtualMachine, cpr: CprController) throws(VMMError) {
        let makeChardev: (String) throws(VMMError) -> Chardev? = { [unowned vm] text throws(VMMError) in
            let says = text.split(separator: ",").contains { $0.hasPrefix("nodelay") || $0.hasPrefix("delay") }
            let delay = text.hasPrefix("tcp:") && !says ? ",nodelay=on" : ""
            return try ChardevFactory.makeShortForm(listening(text) + delay, id: "gdb", vm: vm).chardev
        }
        try GDBServer.register(vm: vm, cpr: cpr, makeChardev: makeChardev)
        if let option = invocation.inOrder(["gdb", "s"]).last {
            let device = option.name == "s" ? GDBServer.defaultDevice : option.value
            try invocation.at(option.place) { () throws(VMMError) in
                try GDBServer.start(device, vm: vm, makeChardev: makeChardev)
            }
        } else if let device = try GDBServer.inheritedDevice(vm) {
            try GDBServer.start(device, vm: vm, makeChardev: makeChardev)
        }
    }
}
