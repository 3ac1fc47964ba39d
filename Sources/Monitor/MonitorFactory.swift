import BatonRuntime

/// Makes monitors from the command line.
public enum MonitorFactory {
    public enum Mode: String, CaseIterable {
        /// The human monitor.
        case readline
        /// QMP.
        case control
    }

    /// Carries out `-mon [chardev=]ID[,mode=control|readline][,pretty=on|off]`.
    public static func make(_ text: String, vm: VirtualMachine) throws(VMMError) {
        let options = try KeyValueOptions(text, impliedKey: "chardev")
        let id = try options.requiredString("chardev")
        let mode = try options.enumeration("mode", Mode.self) ?? .readline
        let pretty = try options.bool("pretty")
        _ = try options.string("id")
        try options.finish()
        if pretty != nil, mode == .readline { throw VMMError("'pretty' is not compatible with HMP monitors") }
        guard let chardev = vm.chardev(id) else { throw VMMError("chardev \"\(id)\" not found") }
        try start(mode, on: chardev, pretty: pretty ?? false, vm: vm)
    }

    /// Starts a monitor on a chardev: of `-monitor`, `-qmp`, `mon:…`.
    public static func start(
        _ mode: Mode, on chardev: Chardev, pretty: Bool = false, vm: VirtualMachine
    ) throws(VMMError) {
        switch mode {
        case .readline: try HMPMonitor(vm: vm, chardev: chardev)
        case .control: try QMPMonitor(vm: vm, chardev: chardev, pretty: pretty)
        }
    }
}
