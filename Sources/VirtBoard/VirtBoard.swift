import BatonRuntime
import Firmware
import Glibc
import InstructionSets
import PCI
import Serial
import Virtio

/// QEMU's riscv64 `virt` board.
///
/// The order of use: make it, add `-netdev` back ends and `-device` devices to
/// `devices`; then, for a fresh start only, `prepareImages()`. The first
/// `VirtualMachine.start()` resets every device, which loads the images. A
/// process that takes over a guest calls neither `prepareImages` nor
/// `resetDevices`: it loads the checkpoint, and nothing here touches guest
/// memory before.
public final class VirtBoard: Machine {
    /// What the command line gives.
    public struct Configuration {
        /// Main memory: `-m` or `-machine memory-backend=`.
        public var ram: RAMBlock
        /// `-numa`, with all of main memory; nil without.
        public var numa: NUMATopology?
        /// Makes every other block, by name and size.
        public var allocate: (_ name: String, _ size: Int) throws(VMMError) -> RAMBlock
        /// Where devices allocate memory of their own.
        public var memory = GuestMemory()
        public var files = BootFiles()
        /// `-smp`
        public var hartCount = 1
        /// `-cpu`
        public var processor = RISCVProcessor.standard
        /// What makes devices; nil for one of the board's own.
        public var devices: DeviceFactory?
        /// `-machine aia=`
        public var aia = AIA.none
        /// `-serial`: the board has one port.
        public var serial: Chardev?
        /// `-drive if=pflash` and `-machine pflash0=`: at most two, of 32 MiB each.
        public var flash: [BlockBackend] = []
        /// `-fw_cfg`, one each.
        public var firmwareFiles: [String] = []
        /// `-smbios`, one each.
        public var smbios: [String] = []
        /// `-smp`, of which `hartCount` is the product.
        public var topology = (sockets: 1, cores: 1, threads: 1)
        /// `-boot menu=`, and `splash-time=` in milliseconds.
        public var bootMenu: (isOn: Bool, wait: UInt16?) = (false, nil)

        public init(ram: RAMBlock, allocate: @escaping (_ name: String, _ size: Int) throws(VMMError) -> RAMBlock) {
            self.ram = ram
            self.allocate = allocate
        }

        /// Main memory in the order of its addresses.
        var blocks: [RAMBlock] { numa?.blocks ?? [ram] }
    }

    public let vm: VirtualMachine
    public let accelerator: any RISCVAccelerator
    /// Where `-netdev` and `-device` go.
    public let devices: DeviceFactory
    public var pciBus: PCIBus? { pci.bus }
    /// The virtio-mmio slots in order of their addresses.
    public let slots: [VirtioMMIO]
    public let uart: SerialUART
    /// What the devices' interrupts go to.
    public let interrupts: InterruptControllers
    public let pci: ECAMHostBridge
    private let loader: ImageLoader

    /// Builds the board and adds its parts to `vm`, always in the same order.
    /// - Throws: an error when memory cannot be had, a chardev is in use, or a
    ///   flash image has the wrong size.
    public init(vm: VirtualMachine, accelerator: any RISCVAccelerator, configuration: Configuration) throws(VMMError) {
        self.vm = vm
        self.accelerator = accelerator
        let memorySize = configuration.blocks.reduce(0) { $0 + UInt64($1.usedLength) }
        vm.machineType = "virt"
        vm.ramSize = memorySize
        vm.architecture = "riscv64"
        try accelerator.makeHarts(configuration.hartCount, configuration.processor)
        let flash = try VirtBoard.mapMemory(vm.addressSpace, configuration)
        try accelerator.prepareMemory()

        let firmware = FwCfg(
            space: vm.addressSpace, layout: .memory, memorySize: memorySize, cpuCount: configuration.hartCount)
        _ = try firmware.add(arguments: configuration.firmwareFiles)
        let bootMenu = try firmware.setBootMenu(configuration.bootMenu.isOn, wait: configuration.bootMenu.wait)
        let smbios = try VirtBoard.tables(configuration, vm, memorySize: memorySize)
        if let smbios { try firmware.add(smbios) }

        let wiring = HartWiring(accelerator.riscvHarts)
        let interrupts = InterruptControllers(
            configuration.aia, wiring: wiring, space: vm.addressSpace,
            hasFirmware: configuration.files.firmware != .builtin)
        self.interrupts = interrupts
        loader = ImageLoader(
            vm: vm, accelerator: accelerator, files: configuration.files, memorySize: memorySize,
            flash: flash, flashIsFilled: !configuration.flash.isEmpty, firmware: firmware, smbios: smbios?.digest,
            bootMenu: bootMenu, aia: configuration.aia, numa: configuration.numa)
        uart = try SerialUART(
            name: "serial0", vm: vm, chardev: configuration.serial, line: interrupts.line(MemoryMap.uart0Interrupt))
        let clock = vm.clock
        let rtc = GoldfishRTC(loop: vm.loop, line: interrupts.line(MemoryMap.rtcInterrupt)) { clock.wallClock }
        let test = TestFinisher(machine: vm)
        let clint = CLINT(harts: wiring)
        var slots: [VirtioMMIO] = []
        for slot in 0..<MemoryMap.virtioSlots {
            slots.append(
                VirtioMMIO(
                    slot: slot, line: interrupts.line(MemoryMap.virtioInterrupt + slot),
                    address: MemoryMap.virtioSlot(slot)))
        }
        self.slots = slots
        devices = configuration.devices ?? DeviceFactory(vm: vm, memory: configuration.memory)
        devices.add(slots)
        if configuration.files.firmware == .builtin {
            accelerator.enableBuiltinSBI(console: uart)
        }

        // The loader comes before the harts, which then start from where it
        // sends them, and the controllers after what drives their inputs.
        try vm.add(loader)
        for hart in accelerator.riscvHarts { try vm.add(hart) }
        try vm.add(test)
        try vm.add(rtc)
        try vm.add(uart)
        for slot in slots { try vm.add(slot) }
        pci = try ECAMHostBridge(
            vm: vm, windows: VirtBoard.pciWindows(memorySize),
            lines: (0..<4).map { interrupts.line(MemoryMap.pciInterrupt + $0) })
        devices.add(pci.bus)
        try vm.add(clint)
        for device in interrupts.devices { try vm.add(device) }
        for chip in flash { try vm.add(chip) }
        try vm.add(firmware)

        let space = vm.addressSpace
        try space.map(test, at: MemoryMap.test, size: TestFinisher.size, name: "riscv.sifive.test")
        try space.map(rtc, at: MemoryMap.rtc, size: GoldfishRTC.registersSize, name: "goldfish_rtc")
        try space.map(clint, at: MemoryMap.clint, size: CLINT.registersSize, name: "riscv.sifive.clint")
        for region in interrupts.regions {
            try space.map(region.device, at: region.start, size: region.size, name: region.name)
        }
        try space.map(uart, at: MemoryMap.uart0, size: SerialUART.registersSize, name: "serial")
        for slot in slots {
            try space.map(
                slot, at: MemoryMap.virtioSlot(slot.slot), size: VirtioMMIO.registersSize, name: "virtio-mmio")
        }
        try space.map(
            firmware, at: MemoryMap.firmwareConfiguration, size: FwCfg.Layout.memory.size, name: "fwcfg")
        try pci.mapIntoAddressSpace(configurationAt: MemoryMap.pciConfiguration)
    }

    /// What UEFI tells the guest of the machine; nil where there is no UEFI, and nothing that `-smbios` says.
    private static func tables(
        _ configuration: Configuration, _ vm: VirtualMachine, memorySize: UInt64
    ) throws(VMMError) -> SMBIOSTables? {
        if configuration.flash.isEmpty, configuration.smbios.isEmpty { return nil }
        let options = try SMBIOSOptions(configuration.smbios)
        // As in QEMU: of two the last one holds for the VM, too.
        if let uuid = options.uuid { vm.uuid = uuid }
        var machine = SMBIOSMachine(version: "virt", memory: [MemoryMap.ram..<MemoryMap.ram + memorySize])
        machine.uuid = vm.uuid
        machine.sockets = configuration.topology.sockets
        machine.cores = configuration.topology.cores
        machine.threads = configuration.topology.threads
        // 64-bit RISC-V.
        machine.processorFamily = 0x201
        return try SMBIOSTables(machine, options)
    }

    private static func pciWindows(_ memorySize: UInt64) -> [PCIWindow] {
        let high = MemoryMap.pciHighMemory(ramSize: memorySize)
        return [
            PCIWindow(
                name: "gpex_ioport_window", isIO: true, start: MemoryMap.pciIO, busStart: 0, size: MemoryMap.pciIOSize),
            PCIWindow(
                name: "pcie-mmio", isIO: false, start: MemoryMap.pciMemory, busStart: MemoryMap.pciMemory,
                size: MemoryMap.pciMemorySize),
            PCIWindow(
                name: "pcie-mmio-high", isIO: false, start: high, busStart: high, size: MemoryMap.pciHighMemorySize),
        ]
    }

    /// - Returns: the two flash chips.
    private static func mapMemory(_ space: AddressSpace, _ configuration: Configuration) throws(VMMError) -> [CFIFlash]
    {
        let blocks = configuration.blocks
        let size = blocks.reduce(0) { $0 + $1.usedLength }
        guard size >= 1 << 20, blocks.allSatisfy({ $0.usedLength % 4096 == 0 }) else {
            throw VMMError("Invalid RAM size \(size): the virt board needs at least 1 MiB, in whole pages")
        }
        guard configuration.flash.count <= 2 else {
            throw VMMError("the virt board has two flash devices, \(configuration.flash.count) were given")
        }
        for backend in configuration.flash where backend.size != MemoryMap.flashSize {
            throw VMMError(
                "device requires \(MemoryMap.flashSize) bytes, block backend '\(backend.id)' provides "
                    + "\(backend.size) bytes")
        }
        let rom = try configuration.allocate("riscv_virt_board.mrom", Int(MemoryMap.bootROMSize))
        try space.map(rom, at: MemoryMap.bootROM, size: MemoryMap.bootROMSize, readOnly: true)
        var flash: [CFIFlash] = []
        for index in 0..<2 {
            let block = try configuration.allocate("virt.flash\(index)", Int(MemoryMap.flashSize))
            let start = MemoryMap.flash + MemoryMap.flashSize * UInt64(index)
            let backend = index < configuration.flash.count ? configuration.flash[index] : nil
            try backend?.lock(for: backend?.readOnly == true ? .firmware : .disk(sharesWrites: false))
            backend?.user = "virt.flash\(index)"
            flash.append(
                try CFIFlash(name: "virt.flash\(index)", block: block, at: start, backend: backend, space: space))
        }
        var start = MemoryMap.ram
        for block in blocks {
            try space.map(block, at: start, size: UInt64(block.usedLength))
            start += UInt64(block.usedLength)
        }
        return flash
    }

    /// Reads and checks kernel, initrd, firmware and device tree. For a fresh
    /// start; guest memory is changed only by the first reset.
    public func prepareImages() throws(VMMError) { try loader.prepare() }

    /// Writes the device tree that the guest gets: `-machine dumpdtb=FILE`.
    public func dumpDeviceTree(to path: String) throws(VMMError) {
        let blob = try loader.plan().deviceTree
        let file = try WholeFile(path, mode: 0o644)
        try FD.writeAll(file.fd, blob, to: "'\(path)'")
        try file.commit()
    }
}
