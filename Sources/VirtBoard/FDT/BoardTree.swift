import BatonRuntime
import CBaton
import Firmware
import InstructionSets
import PCI
import Serial

/// The device tree of the board, with QEMU's bindings.
struct BoardTree {
    let hartCount: Int
    let memorySize: UInt64
    let aia: AIA
    /// What the harts have.
    let extensions: RISCVExtensions
    /// Whether firmware runs in M-mode: else what is M-mode's is disabled, as
    /// firmware would leave it.
    let hasFirmware: Bool
    var numa: NUMATopology?

    // Phandles: CPUs and their controllers, then the board's own.
    private func cpuHandle(_ hart: Int) -> UInt32 { UInt32(1 + 2 * hart) }
    func controllerHandle(_ hart: Int) -> UInt32 { UInt32(2 + 2 * hart) }
    /// Where devices' interrupts go: the PLIC, or the supervisor's APLIC.
    var interruptHandle: UInt32 { UInt32(1 + 2 * hartCount) }
    private var testHandle: UInt32 { interruptHandle + 1 }
    var machineAPLICHandle: UInt32 { interruptHandle + 2 }
    var supervisorIMSICHandle: UInt32 { interruptHandle + 3 }
    var machineIMSICHandle: UInt32 { interruptHandle + 4 }

    func make() -> DeviceTree {
        let tree = DeviceTree()
        let root = tree.root
        root.set("#address-cells", 2)
        root.set("#size-cells", 2)
        root.set("compatible", "riscv-virtio")
        root.set("model", "riscv-virtio,qemu")

        let chosen = root.child("chosen")
        chosen.set("stdout-path", "/soc/serial@10000000")
        var seed = [UInt8](repeating: 0, count: 32)
        if seed.withUnsafeMutableBytes({ cbaton_getrandom($0.baseAddress, $0.count) }) == seed.count {
            chosen.set("rng-seed", bytes: seed)
        }

        for (name, value) in [("poweroff", UInt32(0x5555)), ("reboot", 0x7777)] {
            let node = root.child(name)
            node.set("value", value)
            node.set("offset", 0)
            node.set("regmap", testHandle)
            node.set("compatible", "syscon-\(name)")
        }

        addMemory(root)

        let cpus = root.child("cpus")
        cpus.set("#address-cells", 1)
        cpus.set("#size-cells", 0)
        cpus.set("timebase-frequency", MemoryMap.timebase)
        for hart in 0..<hartCount {
            addCPU(cpus, hart: hart, handle: cpuHandle(hart), controller: controllerHandle(hart))
        }
        // A node is a cluster, as in QEMU.
        let map = cpus.child("cpu-map")
        for (index, harts) in (numa?.nodes.map(\.cpus) ?? [Array(0..<hartCount)]).enumerated() where !harts.isEmpty {
            let cluster = map.child("cluster\(index)")
            for (core, hart) in harts.enumerated() { cluster.child("core\(core)").set("cpu", cpuHandle(hart)) }
        }

        let soc = root.child("soc")
        soc.set("#address-cells", 2)
        soc.set("#size-cells", 2)
        soc.set("compatible", "simple-bus")
        soc.set("ranges")

        let rtc = device(soc, "rtc", MemoryMap.rtc, GoldfishRTC.size, "google,goldfish-rtc")
        interrupt(rtc, MemoryMap.rtcInterrupt)
        let uart = device(soc, "serial", MemoryMap.uart0, SerialUART.size, "ns16550a")
        uart.set("clock-frequency", MemoryMap.uartClock)
        interrupt(uart, MemoryMap.uart0Interrupt)
        let test = device(soc, "test", MemoryMap.test, TestFinisher.size, "sifive,test1", "sifive,test0", "syscon")
        test.set("phandle", testHandle)
        // The highest first, as QEMU: it holds the first -device, and the kernel
        // counts disks in this order.
        for slot in (0..<MemoryMap.virtioSlots).reversed() {
            let start = MemoryMap.virtioSlot(slot)
            let node = device(soc, "virtio_mmio", start, MemoryMap.virtioStride, "virtio,mmio")
            interrupt(node, MemoryMap.virtioInterrupt + slot)
        }

        addPCI(soc)
        addInterruptControllers(soc)
        addFirmwareDevices(root)

        let clint = device(soc, "clint", MemoryMap.clint, CLINT.size, "sifive,clint0", "riscv,clint0")
        // Software (3) and timer (7) interrupts of M-mode.
        clint.set(
            "interrupts-extended",
            cells: (0..<hartCount).flatMap { [controllerHandle($0), 3, controllerHandle($0), 7] })
        return tree
    }

    /// A node of the tree for each NUMA node that has memory, and the distances if any were given.
    private func addMemory(_ root: DeviceTreeNode) {
        func add(_ start: UInt64, _ size: UInt64, node: Int?) {
            let memory = root.child("memory@\(String(start, radix: 16))")
            memory.set("device_type", "memory")
            memory.set("reg", cells64: [start, size])
            if let node { memory.set("numa-node-id", UInt32(node)) }
        }
        guard let numa else { return add(MemoryMap.ram, memorySize, node: nil) }
        var start = MemoryMap.ram
        for (index, node) in numa.nodes.enumerated() where node.size > 0 {
            add(start, node.size, node: index)
            start += node.size
        }
        guard let distances = numa.distances else { return }
        let map = root.child("distance-map")
        map.set("compatible", "numa-distance-map-v1")
        map.set(
            "distance-matrix",
            cells: distances.indices.flatMap { source in
                distances.indices.flatMap { [UInt32(source), UInt32($0), UInt32(distances[source][$0])] }
            })
    }

    /// Both chips, of 32 bits; and fw_cfg.
    private func addFirmwareDevices(_ root: DeviceTreeNode) {
        let flash = device(root, "flash", MemoryMap.flash, MemoryMap.flashSize, "cfi-flash")
        let second = MemoryMap.flash + MemoryMap.flashSize
        flash.set("reg", cells64: [MemoryMap.flash, MemoryMap.flashSize, second, MemoryMap.flashSize])
        flash.set("bank-width", 4)
        let items = device(
            root, "fw-cfg", MemoryMap.firmwareConfiguration, FwCfg.Layout.memory.size, "qemu,fw-cfg-mmio")
        items.set("dma-coherent")
    }

    private func addCPU(_ cpus: DeviceTreeNode, hart: Int, handle: UInt32, controller: UInt32) {
        let cpu = cpus.child("cpu@" + String(hart, radix: 16))
        cpu.set("phandle", handle)
        cpu.set("device_type", "cpu")
        cpu.set("reg", UInt32(hart))
        cpu.set("status", "okay")
        cpu.set("compatible", "riscv")
        let letters = extensions.letterNames
        let words = extensions.wordNames + (aia == .aplicIMSIC ? ["smaia", "ssaia"] : [])
        cpu.set("riscv,isa", "rv64\(letters.joined())_\(words.joined(separator: "_"))")
        cpu.set("riscv,isa-base", "rv64i")
        cpu.set("riscv,isa-extensions", strings: letters + words)
        for (set, name) in [(.zicbom, "cbom"), (.zicbop, "cbop"), (.zicboz, "cboz")] as [(RISCVExtensions, String)]
        where extensions.contains(set) { cpu.set("riscv,\(name)-block-size", RISCVExtensions.cacheBlockSize) }
        let modes: [(RISCVExtensions, String)] = [(.sv57, "sv57"), (.sv48, "sv48"), (.sv39, "sv39")]
        cpu.set("mmu-type", "riscv,\(modes.first { extensions.contains($0.0) }?.1 ?? "none")")
        if let node = numa?.node(ofCPU: hart) { cpu.set("numa-node-id", UInt32(node)) }
        let node = cpu.child("interrupt-controller")
        node.set("#interrupt-cells", 1)
        node.set("interrupt-controller")
        node.set("compatible", "riscv,cpu-intc")
        node.set("phandle", controller)
    }

    /// The host bridge (`pci-host-ecam-generic`): windows, and interrupts by
    /// slot and pin, which repeat every four slots.
    private func addPCI(_ soc: DeviceTreeNode) {
        let node = device(soc, "pci", MemoryMap.pciConfiguration, ECAMHostBridge.size, "pci-host-ecam-generic")
        node.set("#address-cells", 3)
        node.set("#interrupt-cells", 1)
        node.set("#size-cells", 2)
        node.set("device_type", "pci")
        node.set("linux,pci-domain", 0)
        node.set("bus-range", 0, 0xff)
        node.set("dma-coherent")
        func halves(_ value: UInt64) -> [UInt32] {
            [UInt32(truncatingIfNeeded: value >> 32), UInt32(truncatingIfNeeded: value)]
        }
        func range(_ space: UInt32, _ bus: UInt64, _ start: UInt64, _ size: UInt64) -> [UInt32] {
            [space] + halves(bus) + halves(start) + halves(size)
        }
        let high = MemoryMap.pciHighMemory(ramSize: memorySize)
        node.set(
            "ranges",
            cells: range(0x0100_0000, 0, MemoryMap.pciIO, MemoryMap.pciIOSize)
                + range(0x0200_0000, MemoryMap.pciMemory, MemoryMap.pciMemory, MemoryMap.pciMemorySize)
                + range(0x0300_0000, high, high, MemoryMap.pciHighMemorySize))
        var map: [UInt32] = []
        for slot in 0..<4 {
            for pin in 0..<4 {
                let source = MemoryMap.pciInterrupt + (slot + pin) % 4
                map += [UInt32(slot << 11), 0, 0, UInt32(pin + 1), interruptHandle] + specifier(source)
            }
        }
        node.set("interrupt-map", cells: map)
        node.set("interrupt-map-mask", 0x1800, 0, 0, 7)
        if aia == .aplicIMSIC { node.set("msi-parent", supervisorIMSICHandle) }
    }

    func device(
        _ soc: DeviceTreeNode, _ name: String, _ start: UInt64, _ size: UInt64, _ compatible: String...
    ) -> DeviceTreeNode {
        let node = soc.child("\(name)@\(String(start, radix: 16))")
        node.set("compatible", strings: compatible)
        node.set("reg", cells64: [start, size])
        return node
    }

    private func interrupt(_ node: DeviceTreeNode, _ source: Int) {
        node.set("interrupt-parent", interruptHandle)
        node.set("interrupts", cells: specifier(source))
    }

    /// An interrupt as its controller wants it: an APLIC is told that it is
    /// level-triggered, high.
    private func specifier(_ source: Int) -> [UInt32] { [UInt32(source)] + (aia == .none ? [] : [4]) }
}
