import BatonRuntime
import Chardev
import Monitor

/// `-monitor`, `-qmp`, `-qmp-pretty` and `-mon`.
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
}
