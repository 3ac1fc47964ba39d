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
        let numa = try NUMAOptions(invocation, machine: machine)?.make(
            size: try MemoryOptions.size(invocation) ?? MemoryOptions.defaultSize, backend: machine.memoryBackend,
            path: invocation.last("mem-path"), memory: memory)
        vm.numa = numa
        let ram: RAMBlock
        if let first = numa?.blocks.first {
            ram = first
        } else {
            ram = try MemoryOptions.mainMemory(
                name: machine.type.ramName, backend: machine.memoryBackend, size: try MemoryOptions.size(invocation),
                path: invocation.last("mem-path"), preallocates: invocation.has("mem-prealloc"), memory: memory,
                loader: loader)
        }
        let accelerator = try machine.makeAccelerator(vm, loader: loader)
        try vm.setAccelerator(accelerator)
        let devices = DeviceFactory(vm: vm, memory: memory)
        var configuration = MachineConfiguration(
            vm: vm, accelerator: accelerator, devices: devices, memory: memory, ram: ram)
        configuration.numa = numa
        configuration.sockets = machine.topology.sockets
        configuration.cores = machine.topology.cores
        configuration.threads = machine.topology.threads
        configuration.cpu = machine.cpu
        configuration.options = machine.options
        configuration.firmware = SmallOptions.firmware(
            invocation.last("bios") ?? machine.firmware, invocation.all("L"))
        configuration.kernel = invocation.last("kernel") ?? machine.kernel
        configuration.initrd = invocation.last("initrd") ?? machine.initrd
        configuration.commandLine = invocation.last("append") ?? machine.commandLine
        configuration.deviceTree = invocation.last("dtb") ?? machine.deviceTree
        configuration.firmwareFiles = invocation.all("fw_cfg")
        configuration.smbios = invocation.all("smbios")
        configuration.bootMenu = try SmallOptions.bootMenu(invocation)
        if configuration.kernel == nil {
            if configuration.initrd != nil { throw VMMError("-initrd only allowed with -kernel option") }
            if configuration.commandLine != nil { throw VMMError("-append only allowed with -kernel option") }
        }
        configuration.serial = backends.serial
        configuration.flash = backends.flash

        let startFiles = [
            configuration.firmware.path, configuration.kernel, configuration.initrd, configuration.deviceTree,
        ]
        StartFiles.hold(startFiles.compactMap { $0 }, handover: vm.handover)
        let board = try machine.type.make(configuration)
        try machine.finish()
        devices.findType = { name throws(VMMError) in try loader.deviceType(name) }
        for backend in backends.net { try devices.add(backend) }
        let globals = try GlobalProperties(invocation)
        let hasPCI = devices.buses.contains { $0 is PCIBus }
        let cards = backends.cards.map { $0.device(onPCI: hasPCI) }
        func make(_ given: [Invocation.Option], unlessRemoved: Bool) throws(VMMError) {
            var wanted: [(option: Invocation.Option, options: KeyValueOptions)] = []
            for option in given {
                try ofDevice(option, invocation) { () throws(VMMError) in
                    let options = try KeyValueOptions(option.value, impliedKey: "driver")
                    try globals.apply(to: options)
                    wanted.append((option, options))
                }
            }
            try devices.lookAhead(wanted.map { $0.options })
            for (option, options) in wanted {
                try ofDevice(option, invocation) { () throws(VMMError) in
                    guard unlessRemoved, plugged.wasRemoved(.device, try options.string("id")) else {
                        return try devices.add(options)
                    }
                    try devices.passOver(options)
                }
            }
        }
        let given = invocation.inOrder(["device"])
        let implied = (backends.impliedDevices + cards).map {
            Invocation.Option(name: "device", value: $0, place: nil)
        }
        try make(implied + given, unlessRemoved: true)
        try make(plugged.added(.device, besides: given), unlessRemoved: false)
        for id in devices.unusedNetBackends { Report.warning("netdev \(id) has no peer") }
        return (board, devices)
    }

    /// Has errors say which `-device` they are about, and where that stands.
    private static func ofDevice(
        _ option: Invocation.Option, _ invocation: Invocation, _ body: () throws(VMMError) -> Void
    ) throws(VMMError) {
        try invocation.at(option.place) { () throws(VMMError) in
            do throws(VMMError) {
                try body()
            } catch {
                throw try refusal(error, option.value).prefixed("-device \(option.value)")
            }
        }
    }

    /// With the nearest device, for one of QEMU's that there is not.
    private static func refusal(_ error: VMMError, _ text: String) throws(VMMError) -> VMMError {
        guard error.message.hasSuffix("is not a valid device model name") else { return error }
        let model = try KeyValueOptions(text, impliedKey: "driver").string("driver") ?? ""
        return VMMError(error.message, hint: RefusedOptions.hint(forDevice: model) ?? error.hint)
    }
}
