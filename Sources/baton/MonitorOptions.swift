import BatonRuntime
import Chardev
import Monitor

/// `-monitor`, `-qmp`, `-qmp-pretty`, `-mon`, and `-metrics`.
enum MonitorOptions {
    static func start(_ invocation: Invocation, backends: Backends, vm: VirtualMachine) throws(VMMError) {
        for chardev in backends.sharedMonitors { try MonitorFactory.start(.readline, on: chardev, vm: vm) }
        var count = 0
        for (name, value) in invocation.inOrder(["monitor", "qmp", "qmp-pretty", "mon"]) {
            if name == "mon" {
                try MonitorFactory.make(value, vm: vm)
                continue
            }
            let form = try ChardevFactory.makeShortForm(value, id: "compat_monitor\(count)", vm: vm)
            guard let chardev = form.chardev else { continue }
            count += 1
            try MonitorFactory.start(
                name == "monitor" ? .readline : .control, on: chardev, pretty: name == "qmp-pretty", vm: vm)
        }
    }

    /// `-metrics DEV`, as -qmp has it; a socket listens, and waits for nobody, unless DEV says otherwise.
    static func startMetrics(_ invocation: Invocation, vm: VirtualMachine) throws(VMMError) {
        for (index, value) in invocation.all("metrics").enumerated() {
            var text = value
            let keys = value.split(separator: ",").dropFirst()
            if value.hasPrefix("unix:") || value.hasPrefix("tcp:"), !keys.contains(where: { $0.hasPrefix("server") }) {
                text += ",server=on,wait=off"
            }
            let form = try ChardevFactory.makeShortForm(text, id: "metrics\(index)", vm: vm)
            if let chardev = form.chardev { try MetricsServer(vm: vm, chardev: chardev) }
        }
    }
}
