import BatonBase
import BatonMachine

/// Makes machines: what a module of kind `machine` provides.
public protocol MachineType: AnyObject {
    /// As in `-machine`; the module is `machine-NAME`.
    var name: String { get }
    /// A line for `-machine help`.
    var summary: String { get }
    /// The instruction set, by QEMU's name of the target.
    var architecture: String { get }
    /// The name of the block that main memory is, without a backend: QEMU's `default-ram-id`.
    var ramName: String { get }
    /// What `-machine NAME,...` takes besides what all machines take.
    var properties: [DeviceProperty] { get }
    /// The most CPUs of `-smp`.
    var maximumCPUs: Int { get }
    /// The names that `-cpu` takes; the first is the default. What may follow a name is the accelerator's business.
    var cpuModels: [String] { get }
    /// What `-cpu MODEL,help` lists, besides the accelerator's.
    func cpuProperties(of model: String) -> [DeviceProperty]
    /// The accelerators of `-accel` that are tried, in order, when nothing is said.
    var accelerators: [String] { get }
    /// Whether it takes `MachineConfiguration.numa`.
    var supportsNUMA: Bool { get }
    /// Whether it has ACPI tables for its guests.
    var hasACPI: Bool { get }
    /// Builds a machine and adds its parts to the VM, always in the same order.
    /// - Throws: why it cannot be built, with QEMU's texts where it has them.
    func make(_ configuration: MachineConfiguration) throws(VMMError) -> any Machine
}

extension MachineType {
    public var supportsNUMA: Bool { false }
    public var hasACPI: Bool { false }
    public var properties: [DeviceProperty] { [] }
    public func cpuProperties(of model: String) -> [DeviceProperty] { [] }
}

/// A machine that stands. Its order of use: `-netdev` back ends and `-device` devices are added to its devices;
/// then, for a fresh start only, `prepareImages()`. The first `VirtualMachine.start()` resets every device, which loads
/// the images. A process that takes over a guest calls neither `prepareImages` nor `resetDevices`: it loads the
/// checkpoint, and nothing touches guest memory before.
public protocol Machine: AnyObject {
    /// The bus that `info pci` shows; nil for a machine without PCI.
    var pciBus: PCIBus? { get }
    /// Reads and checks what the guest is started from. Guest memory is changed only by the first reset.
    func prepareImages() throws(VMMError)
    /// Writes the device tree that the guest gets: `-machine dumpdtb=FILE`.
    func dumpDeviceTree(to path: String) throws(VMMError)
}

extension Machine {
    public func dumpDeviceTree(to path: String) throws(VMMError) {
        throw VMMError("This machine doesn't have an FDT")
    }
}

/// What the command line says about a machine.
public struct MachineConfiguration {
    public let vm: VirtualMachine
    public let accelerator: any Accelerator
    /// Makes the devices of `-device`. The machine adds its buses.
    public let devices: DeviceContext
    /// Where devices allocate memory of their own.
    public let memory: GuestMemory
    /// Main memory: `-m` or `-machine memory-backend=`; of a machine with `numa` the first block of it.
    public let ram: RAMBlock
    /// `-numa`: whose memory all of main memory is; nil without.
    public var numa: NUMATopology?

    /// `-smp`: all positive.
    public var sockets = 1
    public var cores = 1
    public var threads = 1
    /// `-cpu`, whole; nil for the default.
    public var cpu: String?
    /// The properties of `-machine`, in the order of the command line: a later one holds. What the machine does not
    /// take is refused.
    public var options: [KeyValueOptions] = []
    public var firmware = MachineFirmware.builtin
    public var kernel: String?
    public var initrd: String?
    /// `-append`
    public var commandLine: String?
    /// `-dtb`
    public var deviceTree: String?
    /// `-fw_cfg`, one each.
    public var firmwareFiles: [String] = []
    /// `-smbios`, one each.
    public var smbios: [String] = []
    /// `-boot menu=`, and `splash-time=` in milliseconds.
    public var bootMenu: (isOn: Bool, wait: UInt16?) = (false, nil)
    /// `-serial`; nil where a port has nothing connected.
    public var serial: Chardev?
    /// `-drive if=pflash`
    public var flash: [BlockBackend] = []

    public init(
        vm: VirtualMachine, accelerator: any Accelerator, devices: DeviceContext, memory: GuestMemory, ram: RAMBlock
    ) {
        (self.vm, self.accelerator, self.devices, self.memory, self.ram) = (vm, accelerator, devices, memory, ram)
    }

    public var cpuCount: Int { sockets * cores * threads }

    /// The last value of a property.
    public func option(_ name: String) throws(VMMError) -> String? {
        var value: String?
        for each in options { value = try each.string(name) ?? value }
        return value
    }

    /// `on`, `off` or `auto`, which is nil.
    public func onOffAuto(_ name: String) throws(VMMError) -> Bool? {
        var value: Bool?
        for each in options where each.has(name) { value = try each.onOffAuto(name) }
        return value
    }

    /// Memory of the machine that no option names.
    public func allocate(_ name: String, size: Int) throws(VMMError) -> RAMBlock {
        try memory.allocate(RAMRequest(name: name, usedLength: size))
    }
}
