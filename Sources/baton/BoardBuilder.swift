import BatonRuntime
import Virtio

/// Makes the machine and its devices from the command line.
enum BoardBuilder {
    static func build(
        _ invocation: Invocation, machine: MachineOptions, backends: Backends, vm: VirtualMachine, memory: GuestMemory,
        loader: ModuleLoader
    ) throws(VMMError) -> any Machine {
        let ram = try MemoryOptions.mainMemory(
            name: machine.type.ramName,
            backend: machine.memoryBackend, size: try MemoryOptions.size(invocation), memory: memory)
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
        configuration.firmware = invocation.last("bios")
        configuration.kernel = invocation.last("kernel")
        configuration.initrd = invocation.last("initrd")
        configuration.commandLine = invocation.last("append")
        configuration.deviceTree = invocation.last("dtb")
        configuration.firmwareFiles = invocation.all("fw_cfg")
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
        for text in backends.impliedDevices + invocation.all("device") {
            do throws(VMMError) {
                try devices.add(try KeyValueOptions(text, impliedKey: "driver"))
            } catch {
                throw error.prefixed("-device \(text)")
            }
        }
        for id in devices.unusedNetBackends { Report.warning("netdev \(id) has no peer") }
        return board
    }
}
