import BatonRuntime
import Virtio

/// Makes the machine and its devices from the command line.
enum BoardBuilder {
    static func build(
        _ invocation: Invocation, machine: MachineOptions, backends: Backends, plugged: PluggedParts,
        vm: VirtualMachine, memory: GuestMemory, loader: ModuleLoader
    ) throws(VMMError) -> (board: any Machine, devices: DeviceFactory) {
        // Memory that no option names is what the VMM likes, and so what the processes that it has started need.
        if Backends.needSharedRAM(vm) { memory.addHook(MemfdAllocator(hookName: "vhost-user")) }
        let ram = try MemoryOptions.mainMemory(
            name: machine.type.ramName, backend: machine.memoryBackend, size: try MemoryOptions.size(invocation),
            path: invocation.last("mem-path"), preallocates: invocation.has("mem-prealloc"), memory: memory,
            loader: loader)
        let accelerator = try machine.makeAccelerator(vm, loader: loader)
        try vm.setAccelerator(accelerator)
        let devices = DeviceFactory(vm: vm, memory: memory)
        var configuration = MachineConfiguration(
            vm: vm, accelerator: accelerator, devices: devices, memory: memory, ram: ram)
        configuration.sockets = machine.topology.sockets
        configuration.cores = machine.topology.cores
        configuration.threads = machine.topology.threads
        configuration.cpu = machine.cpu
        configuration.options = machine.options
        configuration.firmware = invocation.last("bios").map { SmallOptions.firmware($0, invocation.all("L")) }
        configuration.kernel = invocation.last("kernel")
        configuration.initrd = invocation.last("initrd")
        configuration.commandLine = invocation.last("append")
        configuration.deviceTree = invocation.last("dtb")
        configuration.firmwareFiles = invocation.all("fw_cfg")
        configuration.smbios = invocation.all("smbios")
        configuration.bootMenu = try SmallOptions.bootMenu(invocation)
        if configuration.kernel == nil {
            if configuration.initrd != nil { throw VMMError("-initrd only allowed with -kernel option") }
            if configuration.commandLine != nil { throw VMMError("-append only allowed with -kernel option") }
        }
        configuration.serial = backends.serial
        configuration.flash = backends.flash

        let board = try machine.type.make(configuration)
        try machine.finish()
        devices.findType = { name throws(VMMError) in try loader.deviceType(name) }
        for backend in backends.net { try devices.add(backend) }
        let globals = try GlobalProperties(invocation)
        let hasPCI = devices.buses.contains { $0 is PCIBus }
        let cards = backends.cards.map { $0.device(onPCI: hasPCI) }
        func make(_ texts: [String], unlessRemoved: Bool) throws(VMMError) {
            var wanted: [(text: String, options: KeyValueOptions)] = []
            for text in texts {
                try ofDevice(text) { () throws(VMMError) in
                    let options = try KeyValueOptions(text, impliedKey: "driver")
                    try globals.apply(to: options)
                    wanted.append((text, options))
                }
            }
            try devices.lookAhead(wanted.map { $0.options })
            for (text, options) in wanted {
                try ofDevice(text) { () throws(VMMError) in
                    guard unlessRemoved, plugged.wasRemoved(.device, try options.string("id")) else {
                        return try devices.add(options)
                    }
                    if try options.string("driver")?.hasPrefix("virtio-net-") == true { devices.passOverCard() }
                }
            }
        }
        let given = invocation.all("device")
        try make(backends.impliedDevices + cards + given, unlessRemoved: true)
        try make(plugged.added(.device, besides: given), unlessRemoved: false)
        for id in devices.unusedNetBackends { Report.warning("netdev \(id) has no peer") }
        return (board, devices)
    }

    /// Has errors say which `-device` they are about.
    private static func ofDevice(_ text: String, _ body: () throws(VMMError) -> Void) throws(VMMError) {
        do throws(VMMError) {
            try body()
        } catch {
            throw try refusal(error, text).prefixed("-device \(text)")
        }
    }

    /// With the nearest device, for one of QEMU's that there is not.
    private static func refusal(_ error: VMMError, _ text: String) throws(VMMError) -> VMMError {
        guard error.message.hasSuffix("is not a valid device model name") else { return error }
        let model = try KeyValueOptions(text, impliedKey: "driver").string("driver") ?? ""
        return VMMError(error.message, hint: RefusedOptions.hint(forDevice: model) ?? error.hint)
    }
}
