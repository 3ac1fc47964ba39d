import BatonRuntime
import Firmware
import InstructionSets
import PCI
import Serial
import Virtio

/// QEMU's x86-64 board `microvm` (docs/system/i386/microvm.rst): what a guest needs and no more. Its interrupt
/// controllers and CPUs are the accelerator's.
public final class MicroVM: Machine {
    public let vm: VirtualMachine
    public let accelerator: any X86Accelerator
    let options: MicroVMOptions
    let layout: RAMLayout
    let interrupts: InterruptLayout
    /// The virtio-mmio slots in order of their addresses.
    public let slots: [VirtioMMIO]
    let pci: ECAMHostBridge?
    let firmware: FwCfg
    let loader: MicroVMLoader
    private let events: GenericEventDevice?
    private let rtc: CMOSClock?
    private let isa: ISABus
    private let secondIOAPIC: SecondIOAPIC?

    public var pciBus: PCIBus? { pci?.bus }
    /// Of pvpanic, if there is one.
    var panicPort: UInt64? { isa.panicPort }
    /// What firmware is told of its menu; empty for nothing.
    private let bootMenu: String
    /// Names of `-fw_cfg`.
    private let firmwareFiles: [String]
    /// What the command line says of the machine and a guest sees, but no device has in its state: as `NAME=VALUE`.
    var description: [String] {
        options.texts + isa.devices.sorted() + ["fw_cfg=\(firmwareFiles.sorted().joined(separator: " "))"]
            + (bootMenu.isEmpty ? [] : ["boot=\(bootMenu)"])
    }

    /// Builds the board and adds its parts to the VM, always in the same order.
    init(
        _ configuration: MachineConfiguration, accelerator: any X86Accelerator, options: MicroVMOptions
    ) throws(VMMError) {
        let vm = configuration.vm
        (self.vm, self.accelerator, self.options) = (vm, accelerator, options)
        isa = ISABus(portSpace: vm.portSpace)
        vm.machineType = "microvm"
        vm.architecture = "x86_64"
        vm.ramSize = UInt64(configuration.ram.usedLength)
        layout = RAMLayout(size: vm.ramSize)
        interrupts = InterruptLayout(acpi: options.hasACPI, secondIOAPIC: options.hasSecondIOAPIC)
        try MicroVM.mapMemory(configuration, layout)

        var description = X86MachineDescription()
        description.sockets = configuration.sockets
        description.cores = configuration.cores
        description.threads = configuration.threads
        description.model = configuration.cpu ?? "host"
        description.hasPIC = options.hasPIC
        description.hasPIT = options.hasPIT
        try accelerator.build(description)

        var files = BootFiles()
        files.firmware = configuration.firmware.path
        files.kernel = configuration.kernel
        files.initrd = configuration.initrd
        files.commandLine = configuration.commandLine ?? ""
        firmware = FwCfg(
            space: vm.addressSpace, layout: .ports, memorySize: layout.size, cpuCount: configuration.cpuCount)
        loader = MicroVMLoader(files: files)
        firmwareFiles = try firmware.add(arguments: configuration.firmwareFiles)
        bootMenu = try firmware.setBootMenu(configuration.bootMenu.isOn, wait: configuration.bootMenu.wait)
        guard configuration.smbios.isEmpty else {
            throw VMMError(
                "machine 'microvm' has no SMBIOS tables", hint: "Leave -smbios out, or use -machine virt.")
        }
        let second =
            options.hasSecondIOAPIC
            ? SecondIOAPIC { [unowned accelerator] in _ = accelerator.send(address: $0, data: $1) } : nil
        secondIOAPIC = second
        let base = interrupts.virtioBase
        slots = (0..<interrupts.virtioSlots).map { slot in
            let (input, address) = (base + slot, MemoryMap.virtioSlot(slot))
            guard let second, input >= MemoryMap.ioapicPins else {
                return VirtioMMIO(slot: slot, line: accelerator.line(gsi: input), address: address)
            }
            return VirtioMMIO(slot: slot, line: second.line(input - MemoryMap.ioapicPins), address: address)
        }
        events = options.hasACPI ? GenericEventDevice(vm: vm, line: accelerator.line(gsi: MemoryMap.gedInterrupt)) : nil
        let clock = vm.clock
        rtc =
            options.hasRTC
            ? CMOSClock(
                loop: vm.loop, line: accelerator.line(gsi: MemoryMap.rtcInterrupt),
                memoryBelow4G: layout.low.upperBound, memoryAbove4G: layout.high.upperBound - layout.high.lowerBound
            ) { clock.wallClock } : nil
        let serial =
            options.hasSerial
            ? try SerialUART(
                name: "serial0", vm: vm, chardev: configuration.serial,
                line: accelerator.line(gsi: MemoryMap.serialInterrupt)) : nil

        // The loader comes before the CPUs, which then start as it says; what drives interrupt controllers before them.
        try vm.add(loader)
        for cpu in accelerator.x86CPUs { try vm.add(cpu) }
        try vm.add(firmware)
        if let events { try vm.add(events) }
        if let rtc { try vm.add(rtc) }
        if let serial { try vm.add(serial) }
        for slot in slots { try vm.add(slot) }
        if let second { try vm.add(second) }
        pci = options.hasPCI ? try MicroVM.makePCI(vm, accelerator, layout, interrupts) : nil
        for device in accelerator.systemDevices { try vm.add(device) }
        loader.machine = self
        configuration.devices.add(isa)
        if let factory = configuration.devices as? DeviceFactory { factory.add(slots) }
        if let pci { configuration.devices.add(pci.bus) }
        try map(serial)
    }

    private static func makePCI(
        _ vm: VirtualMachine, _ accelerator: any X86Accelerator, _ layout: RAMLayout, _ interrupts: InterruptLayout
    ) throws(VMMError) -> ECAMHostBridge {
        var windows = [
            PCIWindow(
                name: "pcie-mmio", isIO: false, start: MemoryMap.pciMemory, busStart: MemoryMap.pciMemory,
                size: MemoryMap.pciMemorySize)
        ]
        if let high = highPCIMemory(accelerator, layout) {
            windows.append(
                PCIWindow(
                    name: "pcie-mmio-high", isIO: false, start: high.lowerBound, busStart: high.lowerBound,
                    size: high.upperBound - high.lowerBound))
        }
        let bridge = try ECAMHostBridge(
            vm: vm, windows: windows,
            lines: (0..<4).map { accelerator.line(gsi: (interrupts.pciBase ?? 0) + $0) })
        try bridge.mapIntoAddressSpace(configurationAt: MemoryMap.pciConfiguration)
        return bridge
    }

    private static func highPCIMemory(_ accelerator: any X86Accelerator, _ layout: RAMLayout) -> Range<UInt64>? {
        MemoryMap.pciHighMemory(physicalAddressBits: accelerator.physicalAddressBits, ram: layout)
    }

    private static func mapMemory(_ configuration: MachineConfiguration, _ layout: RAMLayout) throws(VMMError) {
        let (space, ram) = (configuration.vm.addressSpace, configuration.ram)
        guard ram.usedLength >= 1 << 20, ram.usedLength % 4096 == 0 else {
            throw VMMError(
                "Invalid RAM size \(ram.usedLength): machine 'microvm' needs at least 1 MiB, in whole pages")
        }
        var start = layout.low.lowerBound
        if let path = configuration.firmware.path {
            let image = try FirmwareImage(path)
            let length = image.range.upperBound - image.range.lowerBound
            let low = image.lowRange
            let block = try configuration.allocate("pc.bios", size: Int(length))
            // Firmware writes to what it is executed from, as on QEMU's board.
            try space.map(block, at: image.range.lowerBound, size: length)
            try space.map(
                block, at: low.lowerBound, size: low.upperBound - low.lowerBound,
                blockOffset: Int(length - (low.upperBound - low.lowerBound)))
            try space.map(ram, at: 0, size: low.lowerBound)
            start = low.upperBound
        }
        try space.map(ram, at: start, size: layout.low.upperBound - start, blockOffset: Int(start))
        guard !layout.high.isEmpty else { return }
        try space.map(
            ram, at: layout.high.lowerBound, size: layout.high.upperBound - layout.high.lowerBound,
            blockOffset: Int(layout.low.upperBound))
    }

    private func map(_ serial: SerialUART?) throws(VMMError) {
        let (memory, ports) = (vm.addressSpace, vm.portSpace)
        for slot in slots {
            try memory.map(
                slot, at: MemoryMap.virtioSlot(slot.slot), size: VirtioMMIO.registersSize, name: "virtio-mmio")
        }
        if let events {
            try memory.map(
                events.eventSelect, at: MemoryMap.ged, size: GenericEventDevice.eventSelectSize, name: "acpi-ged")
            try memory.map(
                events.registers, at: MemoryMap.gedRegisters, size: GenericEventDevice.registersSize,
                name: "acpi-ged-regs")
        }
        if let serial {
            try ports.map(serial, at: MemoryMap.serialPort, size: SerialUART.registersSize, name: "serial")
        }
        if let secondIOAPIC {
            try memory.map(secondIOAPIC, at: MemoryMap.ioapic2, size: MemoryMap.ioapicSize, name: "ioapic2")
        }
        if let rtc { try ports.map(rtc, at: MemoryMap.rtcPort, size: CMOSClock.portCount, name: "rtc") }
        try ports.map(firmware, at: MemoryMap.firmwareConfigurationPort, size: FwCfg.Layout.ports.size, name: "fwcfg")
        try ports.map(PostCodePort(), at: PostCodePort.port, size: 1, name: "ioport80")
    }

    // MARK: Start

    /// Slots that have a device.
    private var usedSlots: [Int] { slots.filter(\.isFull).map(\.slot) }

    /// Nil with `acpi=off`.
    func tables() -> ACPITables? {
        guard options.hasACPI else { return nil }
        var configuration = ACPIConfiguration(apicIDs: accelerator.x86CPUs.map(\.apicID), interrupts: interrupts)
        configuration.hasPIC = options.hasPIC
        configuration.hasTimerOverride = options.hasPIT
        configuration.hasSerial = options.hasSerial
        configuration.hasRTC = options.hasRTC
        configuration.virtioSlots = usedSlots
        configuration.panicPort = panicPort
        if pci != nil, let base = interrupts.pciBase {
            configuration.pci = ACPIConfiguration.PCI(
                highMemory: MicroVM.highPCIMemory(accelerator, layout), interruptBase: base)
        }
        return ACPITables(configuration)
    }

    /// Reads and places what the guest starts from, without a change to guest memory.
    func plan(_ files: BootFiles) throws(VMMError) -> BootPlan {
        var files = files
        if !options.hasACPI, options.extendsCommandLine, files.kernel != nil {
            let words = KernelCommandLine.virtioWords(slots: usedSlots, interruptBase: interrupts.virtioBase)
            files.commandLine += (files.commandLine.isEmpty ? "" : " ") + words
        }
        let reserved =
            pci == nil ? [] : [MemoryMap.pciConfiguration..<MemoryMap.pciConfiguration + MemoryMap.pciConfigurationSize]
        let multiprocessor = MPTable(
            apicIDs: accelerator.x86CPUs.map(\.apicID),
            levelInterrupts: (0..<interrupts.virtioSlots).map { interrupts.virtioBase + $0 },
            hasTimerOverride: options.hasPIT)
        return try BootPlan(
            files: files, memory: layout, tables: tables(), multiprocessor: options.hasACPI ? nil : multiprocessor,
            reserved: reserved)
    }

    public func prepareImages() throws(VMMError) { try loader.prepare() }
}
