import BatonRuntime
import RISCV
import VirtBoard
import Virtio

/// Makes the board and its devices from the command line.
enum BoardBuilder {
    static func build(
        _ invocation: Invocation, machine: MachineOptions, backends: Backends, vm: VirtualMachine, memory: GuestMemory,
        loader: ModuleLoader
    ) throws(VMMError) -> VirtBoard {
        let ram = try MemoryOptions.mainMemory(
            backend: machine.memoryBackend, size: try MemoryOptions.size(invocation), memory: memory)
        var configuration = VirtBoard.Configuration(ram: ram) { name, size throws(VMMError) in
            try memory.allocate(RAMRequest(name: name, usedLength: size))
        }
        configuration.memory = memory
        configuration.files.firmware = BootFiles.Firmware(argument: invocation.last("bios"))
        configuration.files.kernel = invocation.last("kernel")
        configuration.files.initrd = invocation.last("initrd")
        configuration.files.commandLine = invocation.last("append")
        configuration.files.deviceTree = invocation.last("dtb")
        if configuration.files.kernel == nil {
            if configuration.files.initrd != nil { throw VMMError("-initrd only allowed with -kernel option") }
            if configuration.files.commandLine != nil { throw VMMError("-append only allowed with -kernel option") }
        }
        configuration.aia = machine.aia
        configuration.serial = backends.serial
        configuration.flash = backends.flash

        let accelerator = try SoftwareAccelerator(vm: vm, hartCount: machine.hartCount)
        let board = try VirtBoard(vm: vm, accelerator: accelerator, configuration: configuration)
        board.devices.findType = { name throws(VMMError) in try loader.deviceType(name) }
        for backend in backends.net { try board.devices.add(backend) }
        for text in backends.impliedDevices + invocation.all("device") {
            do throws(VMMError) {
                try board.devices.add(try KeyValueOptions(text, impliedKey: "driver"))
            } catch {
                throw error.prefixed("-device \(text)")
            }
        }
        for id in board.devices.unusedNetBackends { Report.warning("netdev \(id) has no peer") }
        return board
    }
}
