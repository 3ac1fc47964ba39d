import BatonRuntime
import Glibc
import InstructionSets
@testable import MicroVM
import PCI
import RISCV
import VirtBoard
import Virtio

/// A whole board with every device of ours, that the guest's CPUs leave alone: what a guest can do to devices, an input
/// does.
final class FuzzBoard {
    let vm: VirtualMachine
    let ram: RAMBlock
    let ramBase: UInt64
    /// Where PCI configuration space is.
    let ecam: UInt64
    /// Where BARs go.
    let pciMemory: UInt64
    private let machine: any Machine
    let chardevs: [InputChardev]
    let network: InputNetwork
    let engine: IdleEngine
    /// What every device saves after a reset.
    private(set) var initial: [[UInt8]] = []
    /// Address spaces and regions that a guest accesses.
    struct Region {
        var space: AddressSpace
        var start: UInt64
        var size: UInt64
    }
    private(set) var regions: [Region] = []
    /// Files that the board starts from.
    private let files: [MemoryFile]

    private static let devices = [
        "virtio-blk-device,drive=d", "virtio-rng-device", "virtio-serial-device", "virtconsole,chardev=c1",
        "virtio-net-device,netdev=n,mq=on",
    ]
    private static let pciDevices = [
        "virtio-rng-pci", "virtio-serial-pci,addr=5.0", "virtio-blk-pci,drive=e,num-queues=2",
    ]

    private struct Parts {
        let vm: VirtualMachine
        let chardevs = (0..<2).map { InputChardev("c\($0)") }
        let network = InputNetwork("n")
        let engine = IdleEngine()

        init() throws {
            vm = try VirtualMachine()
            for name in ["d", "e"] {
                let disk = try MemoryFile(name)
                disk.fill(length: 1 << 20)
                var settings = BlockSettings()
                settings.isLocked = false
                settings.formatIsKnown = true
                settings.engine = try vm.blockEngines.engine(of: engine)
                try vm.add(BlockBackend(id: name, filename: disk.path, readOnly: false, settings: settings))
            }
            try vm.add(chardevs[1])
        }
    }

    private init(
        _ parts: Parts, ram: RAMBlock, ramBase: UInt64, ecam: UInt64, pciMemory: UInt64, machine: any Machine,
        devices: DeviceFactory, files: [MemoryFile]
    ) throws {
        (vm, chardevs, network, engine) = (parts.vm, parts.chardevs, parts.network, parts.engine)
        (self.ram, self.ramBase, self.ecam, self.pciMemory) = (ram, ramBase, ecam, pciMemory)
        (self.machine, self.files) = (machine, files)
        try devices.add(network)
        for text in FuzzBoard.devices + FuzzBoard.pciDevices {
            try devices.add(KeyValueOptions(text, impliedKey: "driver"))
        }
        try machine.prepareImages()
        for region in vm.addressSpace.mmioRegions where region.start != ecam {
            regions.append(Region(space: vm.addressSpace, start: region.start, size: region.size))
        }
        for region in vm.portSpace.mmioRegions {
            regions.append(Region(space: vm.portSpace, start: region.start, size: region.size))
        }
        // Flash.
        for range in vm.addressSpace.ramRanges where range.hasDevice {
            regions.append(Region(space: vm.addressSpace, start: range.start, size: range.size))
        }
        reset()
        initial = states()
    }

    /// The riscv64 board, with a flash chip.
    static func virt(aia: AIA) throws -> FuzzBoard {
        let parts = try Parts()
        let ram = try makeRAM("ram", 16 << 20)
        let accelerator = try SoftwareAccelerator(vm: parts.vm)
        try parts.vm.setAccelerator(accelerator)
        let flash = try MemoryFile("flash")
        flash.fill(length: 32 << 20)
        var settings = BlockSettings()
        settings.isLocked = false
        settings.formatIsKnown = true
        let chip = try BlockBackend(id: "flash0", filename: flash.path, readOnly: false, settings: settings)
        var configuration = VirtBoard.Configuration(ram: ram, allocate: makeRAM)
        configuration.hartCount = 2
        configuration.serial = parts.chardevs[0]
        configuration.aia = aia
        configuration.flash = [chip]
        configuration.firmwareFiles = ["opt/a,string=abc"]
        let board = try VirtBoard(vm: parts.vm, accelerator: accelerator, configuration: configuration)
        return try FuzzBoard(
            parts, ram: ram, ramBase: 0x8000_0000, ecam: 0x3000_0000, pciMemory: 0x4000_0000, machine: board,
            devices: board.devices, files: [flash])
    }

    /// The x86-64 board with PCI and firmware.
    static func microVM() throws -> FuzzBoard {
        let parts = try Parts()
        let vm = parts.vm
        let accelerator = FakeX86Accelerator()
        try vm.setAccelerator(accelerator)
        let memory = GuestMemory()
        let ram = try memory.allocate(RAMRequest(name: "ram", usedLength: 16 << 20))
        let factory = DeviceFactory(vm: vm, memory: memory)
        let firmware = try MemoryFile("bios")
        firmware.fill(length: 64 << 10)
        var configuration = MachineConfiguration(
            vm: vm, accelerator: accelerator, devices: factory, memory: memory, ram: ram)
        configuration.firmware = .file(firmware.path)
        configuration.serial = parts.chardevs[0]
        configuration.firmwareFiles = ["opt/a,string=abc"]
        configuration.options = [try KeyValueOptions("pcie=on", style: .keyval)]
        let board = try MicroVMType().make(configuration)
        for text in ["isa-debug-exit", "pvpanic", "isa-debugcon,chardev=c0"] {
            // Not all of them are devices of every version.
            _ = try? factory.add(KeyValueOptions(text, impliedKey: "driver"))
        }
        return try FuzzBoard(
            parts, ram: ram, ramBase: 0, ecam: 0xe000_0000, pciMemory: 0xc000_0000,
            machine: board, devices: factory, files: [firmware])
    }

    // MARK: Before and after each input

    /// Puts everything back to where it was before the first input. The guest does not run.
    func reset() {
        for device in vm.devices { device.pause() }
        madvise(ram.host, ram.usedLength, MADV_DONTNEED)
        for chardev in chardevs { chardev.room = .max }
        engine.error = 0
        vm.resetDevices()
    }

    func resume() { for device in vm.devices { device.resume() } }
    func pause() { for device in vm.devices { device.pause() } }

    func states() -> [[UInt8]] { vm.devices.map { savedState($0) } }

    /// A reset takes every device back to its start, but for a clock that keeps what was set.
    /// - Parameter wiresAreReal: whether the levels that interrupt controllers know of are what devices drive. A state may
    ///   say something else, which a reset leaves as it is.
    func expectReset(wiresAreReal: Bool = true) {
        reset()
        for (index, device) in vm.devices.enumerated() where !FuzzBoard.keepsState(device) {
            if !wiresAreReal, FuzzBoard.controllers.contains(where: { device.stateName.hasPrefix($0) }) { continue }
            let state = savedState(device)
            expect(
                state == initial[index] || FuzzBoard.comparable(state) == FuzzBoard.comparable(initial[index]),
                "after a reset '\(device.stateName)' is not as a new one")
        }
        restore(all: !wiresAreReal)
    }

    private static let controllers = ["aplic", "plic", "imsic", "ioapic", "cpu"]

    /// Puts back what a reset does not.
    private func restore(all: Bool) {
        for (index, device) in vm.devices.enumerated() where all || FuzzBoard.keepsState(device) {
            do throws(VMMError) { try loadState(initial[index], into: device) } catch {
                found("'\(device.stateName)' refuses the state that it started with: \(error.message)")
            }
        }
    }

    /// A state without what a reset leaves as it is: a driver is to see that the configuration space is another.
    private static func comparable(_ state: [UInt8]) -> [UInt8] {
        var fields = EditableState(state)
        fields.fields.removeAll { $0.name == Array("config-generation".utf8) }
        return fields.bytes
    }

    private static func keepsState(_ device: any Device) -> Bool { ["rtc", "cmos"].contains(device.stateName) }

    /// Lets the loop do what accesses have put off, a few times.
    func turn(_ times: Int = 4) {
        for _ in 0..<times { vm.loop.poll(timeout: 0) }
    }

    // MARK: PCI

    /// Gives the BARs of every function a place, as firmware does.
    func placeBars() {
        var place = pciMemory
        for device in 0..<32 {
            let config = ecam + UInt64(device) << 15
            guard vm.addressSpace.mmioRead(config, width: 4).map({ $0 & 0xffff != 0xffff }) == true else { continue }
            var bar = 0
            while bar < 6 {
                let register = config + 0x10 + UInt64(4 * bar)
                _ = vm.addressSpace.mmioWrite(register, width: 4, value: 0xffff_ffff)
                let answer = UInt32(truncatingIfNeeded: vm.addressSpace.mmioRead(register, width: 4) ?? 0)
                let is64Bit = answer & 7 == 4
                if answer != 0, answer & 1 == 0 {
                    let size = UInt64(~(answer & ~15) &+ 1)
                    place = (place + size - 1) & ~(size - 1)
                    _ = vm.addressSpace.mmioWrite(register, width: 4, value: place)
                    if is64Bit { _ = vm.addressSpace.mmioWrite(register + 4, width: 4, value: 0) }
                    place += max(size, 4096)
                }
                bar += is64Bit ? 2 : 1
            }
            // Memory, I/O and bus master.
            _ = vm.addressSpace.mmioWrite(config + 4, width: 2, value: 7)
        }
    }
}

/// CPUs and interrupt controllers that do nothing, in place of KVM's.
final class FakeX86Accelerator: X86Accelerator {
    private final class CPU: X86CPU {
        let index = 0
        let apicID: UInt32 = 0
        let stateName = "cpu0"
        func setStartState(_ state: X86StartState?) {}
        func reset() {}
        func save(to writer: inout StateWriter) {}
        func loader(of reader: StateReader) throws(VMMError) -> () -> Void {
            try reader.finish()
            return {}
        }
    }

    let name = "fake"
    let cpus: [CPUInfo] = []
    let x86CPUs: [any X86CPU] = [CPU()]
    let systemDevices: [any Device] = []
    let timeStampFrequency: UInt64? = 1_000_000_000
    let physicalAddressBits = 40

    func registers(ofCPU index: Int) -> String { "" }
    func runSlice() -> SliceResult { .idle(until: nil) }
    func yield() {}
    func build(_ machine: X86MachineDescription) throws(VMMError) {}
    func line(gsi: Int) -> InterruptLine { InterruptLine { _ in } }
    func send(address: UInt64, data: UInt32) -> Bool { true }
}
