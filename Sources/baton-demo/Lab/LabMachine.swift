import Foundation
import ProcessSupport

/// What a guest of the lab is made of: the VMM's command line, and what its program must find.
struct LabMachine {
    /// How virtio devices are reached; the value is the end of their types' names.
    enum Bus: String { case mmio = "device", pci }

    /// How the VMM is replaced under the guest.
    enum Mode: String { case restart, transfer, reboot, liveupdate }

    /// Debian's kernel that runs in the guest.
    enum Kernel: String {
        /// That for clouds, which has few drivers.
        case cloud
        /// That for all machines.
        case full

        func files(_ files: LabFiles) -> LinuxKernel { self == .cloud ? files.guest : files.host }

        /// The guest's initrd, in the directory of the lab's host.
        var initrdName: String { "\(rawValue)-initrd" }

        /// Drivers that are no part of the kernel's image.
        var modules: [String] {
            ["virtio_mmio", "virtio_blk", "virtio_net", "uio_pci_generic", "nvme", "vmw_vsock_virtio_transport"]
                + (self == .full ? ["e1000e"] : [])
        }
    }

    var kernel = Kernel.cloud
    var cpus = 1
    /// Of a virtio disk, and of two network cards that are joined outside. Nil: there are none.
    var bus: Bus?
    /// Frames on their way are lost with the VMM's process.
    var hasCards = true
    /// A card to which nobody is joined: the guest's program tells of its link.
    var hasIdleCard = false
    /// Devices of the lab's, which have their driver in the guest.
    var passedThrough: [LabHost.Device] = []
    /// They are opened by `/dev/iommu`, and not by their groups.
    var usesIOMMUFD = false
    /// Slots that devices come to and go from while the guest runs: `rp0`, `rp1` and so on.
    var rootPorts = 0
    /// The guest's address, by which the lab's Linux has sockets to it. Nil: there are none.
    var socketAddress: Int?
    /// VMMs are in a sandbox, as an operator has them: with the directories of what a case names later.
    var isInSandbox = true
    var mode = Mode.restart
    /// A directory of files that are to survive the VMM, and the lab's Linux: RAM and the disk. Nil: RAM is a memfd.
    var storage: String?
    /// A directory for the disk alone.
    var diskDirectory: String?
    /// MiB of RAM, and how many of them the guest's program works on.
    var memory = 512, memoryAtWork = 0

    private var isPCI: Bool { bus == .pci || !passedThrough.isEmpty || rootPorts > 0 }

    /// - Parameters:
    ///   - initrd: as `LabGuest.makeInitrd` makes it.
    ///   - directory: of sockets, and of a disk that nobody needs afterwards.
    func arguments(vmm: String, kernel: String, initrd: String, directory: TemporaryDirectory, socket: String) throws
        -> [String]
    {
        let size = "\(memory)M"
        let ram =
            storage.map { "memory-backend-file,id=ram,size=\(size),share=on,mem-path=\($0)/ram" }
            ?? "memory-backend-memfd,id=ram,size=\(size),share=on"
        var arguments = [
            vmm, "-M", "microvm,memory-backend=ram\(isPCI ? ",pcie=on" : "")", "-accel", "kvm", "-cpu", "host",
            "-smp", "\(cpus)", "-m", size, "-object", ram, "-cpr-enable", mode.rawValue, "-only-cpr-capable",
            "-kernel", kernel, "-initrd", initrd, "-append", commandLine, "-nodefaults", "-display", "none",
            "-serial", "stdio", "-monitor", "none", "-qmp", "unix:\(socket),server=on,wait=off",
        ]
        // By which its guest is found again.
        if mode == .liveupdate { arguments += ["-name", "lab-guest"] }
        if let bus {
            let disk = "\(storage ?? diskDirectory ?? directory.path)/disk.img"
            if !FileManager.default.fileExists(atPath: disk) {
                let file = open(disk, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
                guard file >= 0, ftruncate(file, 8 << 20) == 0 else { throw Failure.system(disk) }
                close(file)
            }
            arguments += [
                "-drive", "file=\(disk),format=raw,if=none,id=disk", "-device", "virtio-blk-\(bus.rawValue),drive=disk",
            ]
            if hasCards { arguments += Self.cards([("a", "b"), ("b", "a")], bus, directory) }
            if hasIdleCard { arguments += Self.cards([("a", "nobody")], bus, directory) }
        }
        for port in 0..<rootPorts { arguments += ["-device", "pcie-root-port,id=rp\(port),chassis=\(port + 1)"] }
        if let socketAddress {
            arguments += ["-device", "vhost-vsock-\((bus ?? .mmio).rawValue),guest-cid=\(socketAddress)"]
        }
        let paths = [directory.path] + [storage, diskDirectory].compactMap { $0 }
        arguments += ["-sandbox", isInSandbox ? "on" + paths.map { ",paths=\($0)" }.joined() : "off"]
        if usesIOMMUFD { arguments += ["-object", "iommufd,id=iommufd0"] }
        for device in passedThrough {
            arguments += ["-device", "vfio-pci,host=\(device.address)" + (usesIOMMUFD ? ",iommufd=iommufd0" : "")]
        }
        return arguments
    }

    /// - Parameter pairs: each card's end, and the one that it is joined to.
    private static func cards(_ pairs: [(String, String)], _ bus: Bus, _ directory: TemporaryDirectory) -> [String] {
        pairs.flatMap { end, other in
            let addresses =
                "local.type=unix,local.path=\(directory.file(end)),"
                + "remote.type=unix,remote.path=\(directory.file(other))"
            return [
                "-netdev", "dgram,id=\(end),\(addresses)", "-device", "virtio-net-\(bus.rawValue),netdev=\(end)",
            ]
        }
    }

    /// In an emulated KVM each character on the console, and each calibration against a timer, takes a while.
    private var commandLine: String {
        Self.kernelOptions + (memoryAtWork > 0 ? " lab_memory=\(memoryAtWork)" : "")
            + (rootPorts > 0 ? " lab_plugs=1" : "")
    }
    private static let kernelOptions =
        "console=ttyS0 reboot=t panic=-1 quiet init_on_alloc=0 mitigations=off random.trust_cpu=on "
        + "cryptomgr.notests nokaslr no_timer_check net.ifnames=0"

    // MARK: What its program says

    private func number(_ device: LabHost.Device) -> Int { passedThrough.contains(device) ? 1 : 0 }

    private var cards: Int { bus == nil ? 0 : hasCards ? 2 : hasIdleCard ? 1 : 0 }

    /// What the guest's program must say that it works with.
    var introduction: String {
        "cpus=\(cpus) disk=\(bus == nil ? 0 : 1) cards=\(cards) edu=\(number(.edu)) "
            + "nvme=\(number(.nvme)) e1000e=\(number(.e1000e)) vsock=\(socketAddress == nil ? 0 : 1) clock=kvm-clock"
    }

    /// Kinds of work, by their names in a report.
    var work: Set<String> {
        var kinds: Set = ["sleeps", "alarms", "signals", "rounds", "readings"]
        if memoryAtWork > 0 { kinds.insert("pages") }
        if bus != nil { kinds.insert("blocks") }
        if bus != nil, hasCards { kinds.insert("frames") }
        if socketAddress != nil { kinds.insert("vsock-echoes") }
        for device in passedThrough { kinds.insert(device.work) }
        return kinds
    }
}
