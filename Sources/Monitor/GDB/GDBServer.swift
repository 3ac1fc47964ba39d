import BatonRuntime

/// The debugger's stub of a VM: `-gdb`, and `gdbserver` of the human monitor, which may also end it.
public final class GDBServer: MachineParts {
    fileprivate(set) var stub: GDBStub?
    /// As it was given.
    fileprivate var device = "none"

    public init() {}

    /// What `gdbserver` without a word means, and `-s`.
    public static let defaultDevice = "tcp::1234"
    private static let part = "gdbserver"

    /// Starts a stub in place of the one that there is, or none.
    /// - Parameters:
    ///   - device: `none`, or what `makeChardev` takes.
    ///   - makeChardev: makes the chardev of that, for one that listens and waits for nobody; nil for none.
    public static func start(
        _ device: String, vm: VirtualMachine, makeChardev: (String) throws(VMMError) -> Chardev?
    ) throws(VMMError) {
        let server = vm.parts(GDBServer.self)
        if device != "none", vm.accelerator?.debugTarget == nil {
            throw VMMError(
                "gdbstub: current accelerator doesn't support guest debugging",
                hint: "CPUs in software can be debugged: -machine virt with -accel tcg.")
        }
        if let stub = server.stub {
            // One that -chardev has made stays, for another use.
            let isOwn = !server.device.hasPrefix("chardev:")
            server.stub = nil
            server.device = "none"
            stub.end()
            if isOwn {
                vm.remove(stub.chardev)
                stub.chardev.shutDown()
            }
        }
        guard device != "none", let target = vm.accelerator?.debugTarget, let chardev = try makeChardev(device) else {
            return
        }
        do throws(VMMError) {
            server.stub = try GDBStub(vm: vm, chardev: chardev, target: target)
            server.device = device
        } catch {
            throw error.prefixed("gdbstub: couldn't create chardev")
        }
    }

    /// The stub that the process before had, though no option may name it.
    public static func inheritedDevice(_ vm: VirtualMachine) throws(VMMError) -> String? {
        try vm.handover?.inheritedPart(part)?.string("device")
    }

    /// Adds HMP's `gdbserver`, and takes part in the updates of the VM.
    public static func register(
        vm: VirtualMachine, cpr: CprController, makeChardev: @escaping (String) throws(VMMError) -> Chardev?
    ) throws(VMMError) {
        try vm.commands.add(
            HMPCommand(
                "gdbserver", parameters: "[device]",
                help: "start gdbserver on given device (default '\(defaultDevice)'), stop with 'none'"
            ) { [unowned vm, unowned cpr] (line: String) throws(VMMError) -> String in
                if let refusal = cpr.refusal { throw refusal }
                let device = line.isEmpty ? defaultDevice : line
                do throws(VMMError) {
                    try start(device, vm: vm, makeChardev: makeChardev)
                } catch {
                    throw error.prefixed("Could not open gdbserver on device '\(device)'")
                }
                return device == "none" ? "Disabled gdbserver\n" : "Waiting for gdb connection on device '\(device)'\n"
            })
        cpr.onChange(of: part, fds: nil) { (_: PartChanges) throws(VMMError) in }
        cpr.onPhase { [unowned vm, unowned cpr] phase throws(VMMError) in
            guard phase == .survey || phase == .exec else { return }
            let server = vm.parts(GDBServer.self)
            guard server.stub != nil else { return }
            var writer = StateWriter()
            writer.put("device", server.device)
            cpr.handOver(part, writer)
        }
    }

    /// The VMM ends: says so to a debugger that waits for the guest.
    public static func ending(vm: VirtualMachine, status: Int32) {
        vm.parts(GDBServer.self).stub?.sayEnd(status: status)
    }
}
