import ArgumentParser
import Foundation
import ProcessSupport

/// What is tried in the lab, by the names of `baton-demo lab --only`.
enum LabCase: String, CaseIterable, ExpressibleByArgument {
    /// Debian's kernel, as it comes, to user space and off again.
    case boot
    case bootSMP = "boot-smp"
    /// Work on a disk, a network, timers, signals and registers, over updates.
    case mmio, pci
    /// The same over updates of other modes.
    case transfer, reboot
    /// SeaBIOS starts from a disk.
    case seabios
    /// Devices of the lab's behind its IOMMU, by the kernel's VFIO.
    case vfio, e1000e, iommufd
    /// Sockets between the guest and the lab, by the kernel's vhost.
    case vsock
    /// Disks come and go in root ports.
    case hotplug
    /// The lab's own Linux goes and comes meanwhile.
    case hostReboot = "host-reboot"
    case hostKexec = "host-kexec"
    case liveupdate
    case liveupdateKVM = "liveupdate-kvm"
    case liveupdateService = "liveupdate-service"

    var explanation: String {
        switch self {
        case .boot: "Debian's kernel to user space, with one vCPU, and one update"
        case .bootSMP: "the same with two vCPUs, over updates"
        case .mmio: "work over updates, with one vCPU and virtio-mmio"
        case .pci: "work over updates, with two vCPUs and virtio-pci"
        case .transfer: "work over updates in mode transfer: each to a process that is started first"
        case .reboot: "work over updates in mode reboot: each by a file, with guest RAM in it"
        case .seabios: "SeaBIOS and a boot sector that goes on reading its disk, over updates"
        case .vfio: "an edu and an NVMe disk, passed through, at work over updates beside the rest"
        case .e1000e: "an e1000e network card, passed through, with its driver at work over updates"
        case .iommufd: "all three by /dev/iommu (needs a kernel that is built once: --build-kernel)"
        case .vsock: "AF_VSOCK streams by the kernel's vhost-vsock, which each update ends at both ends, and new ones"
        case .hotplug: "disks that come to and go from root ports, with Linux' pciehp, over updates"
        case .hostReboot: "mode reboot over \(LabStorage.restarts) resets of the lab, with RAM on persistent memory"
        case .hostKexec: "the same over \(LabStorage.restarts) kexecs of the lab's Linux"
        case .liveupdate:
            "mode liveupdate over \(LabLiveUpdate.kexecs) kexecs of the lab's Linux, and its failures (needs the kernel "
                + "of --build-kernel)"
        case .liveupdateKVM:
            "the same over \(LabLiveUpdateKVM.kexecs) kexecs under an x86-64 guest on KVM at work"
        case .liveupdateService:
            "the same over \(LabService.kexecs) kexecs by systemd, whose services the VMs are"
        }
    }

    /// The lab that the case needs.
    var setup: LabHost.Setup {
        switch self {
        case .iommufd: .ownKernel
        case .hostReboot, .hostKexec: .persistent
        case .liveupdate, .liveupdateKVM: .liveUpdate
        case .liveupdateService: .service
        default: .standard
        }
    }

    /// Why the case cannot be run here; nil if it can.
    func obstacle(_ files: LabFiles) -> String? {
        switch setup {
        case _ where setup.hasOwnKernel && !LabKernelBuild.isDone(files.own):
            "needs a kernel of our own, with the options of today, which baton-demo lab --build-kernel builds"
        case .persistent where Tool.find("mkfs.ext4") == nil: "needs mkfs.ext4 (Debian's package e2fsprogs)"
        default: nil
        }
    }

    /// The case ends the lab's Linux, and so is the only one in its lab.
    var isAlone: Bool { setup.mayStartAnew }

    private var guestKernel: LabMachine.Kernel { [.e1000e, .iommufd].contains(self) ? .full : .cloud }

    /// What a case has to work with.
    struct Context {
        let vmm: String
        let files: LabFiles
        /// Of initrds, SeaBIOS' disk and the rest that `prepare` has made.
        let directory: String
        /// How often the VMM is replaced in those cases that are about that.
        let updates: Int
    }

    /// Makes what the case needs, outside of the lab.
    func prepare(_ files: LabFiles, vmm: String, cache: String, _ directory: TemporaryDirectory) throws {
        if self == .liveupdate {
            return try LabLiveUpdate.prepare(files, vmm: vmm, cache: cache, directory: directory)
        }
        if self == .liveupdateService { return try LabService.prepare(files, directory: directory) }
        if self == .seabios { return try LabFirmware.makeDisk(directory: directory) }
        if self == .vsock { try GuestBuilder().buildVsockPeer(to: directory.file(LabVsock.peerProgram)) }
        if [.hostKexec, .liveupdateKVM].contains(self) {
            try GuestBuilder().buildKexecProgram(to: directory.file(LabHost.kexecProgram))
        }
        guard !FileManager.default.fileExists(atPath: directory.file(guestKernel.initrdName)) else { return }
        try LabGuest.makeInitrd(guestKernel, files: files, directory: directory)
    }

    /// - Returns: what was seen.
    /// - Throws: what was wrong.
    func run(_ context: Context) throws -> String {
        var machine = LabMachine()
        machine.kernel = guestKernel
        var updates = context.updates
        switch self {
        case .boot: updates = 1
        case .bootSMP: machine.cpus = 2
        case .mmio: machine.bus = .mmio
        case .pci: (machine.cpus, machine.bus) = (2, .pci)
        case .transfer: (machine.cpus, machine.bus, machine.mode) = (2, .pci, .transfer)
        case .reboot: (machine.bus, machine.hasCards, machine.mode) = (.mmio, false, .reboot)
        case .seabios: return try LabFirmware.run(context)
        case .vfio: (machine.bus, machine.passedThrough) = (.pci, [.edu, .nvme])
        case .e1000e: (machine.bus, machine.passedThrough) = (.pci, [.e1000e])
        case .iommufd: (machine.bus, machine.passedThrough, machine.usesIOMMUFD) = (.pci, LabHost.Device.allCases, true)
        case .vsock: return try LabVsock.run(context)
        case .hotplug: return try LabHotPlug.run(context)
        case .hostReboot, .hostKexec:
            (machine.bus, machine.hasCards, machine.mode) = (.mmio, false, .reboot)
            return try LabStorage.run(machine, context, executesKernel: self == .hostKexec)
        case .liveupdate: return try LabLiveUpdate.run(context)
        case .liveupdateKVM: return try LabLiveUpdateKVM.run(context)
        case .liveupdateService: return try LabService.run(context)
        }
        for device in machine.passedThrough { try LabHost.giveToVFIO(device) }
        return try Self.work(machine, context, updates: updates)
    }

    private static func work(_ machine: LabMachine, _ context: Context, updates: Int) throws -> String {
        let start = Clock.now
        let guest = try LabGuest(machine, context)
        try guest.boot()
        let booted = Clock.now - start
        for number in 0..<updates {
            do { try guest.update() } catch { throw Failure("update \(number + 1): \(error)") }
        }
        let exits = try guest.watchExits()
        try guest.finish()
        return String(format: "at work after %.0f s; ", booted)
            + "\(updates) updates, nothing lost: \(guest.summary); \(exits)"
    }
}
