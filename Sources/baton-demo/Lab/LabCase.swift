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
    /// SeaBIOS starts from a disk.
    case seabios
    /// Devices of the lab's behind its IOMMU, by the kernel's VFIO.
    case vfio

    var explanation: String {
        switch self {
        case .boot: "Debian's kernel to user space, with one vCPU, and one update"
        case .bootSMP: "the same with two vCPUs"
        case .mmio: "work over updates, with one vCPU and virtio-mmio"
        case .pci: "work over updates, with two vCPUs and virtio-pci"
        case .seabios: "SeaBIOS and a boot sector that goes on reading its disk, over updates"
        case .vfio: "an edu and an NVMe disk, passed through, at work over updates beside the rest"
        }
    }

    /// What a case has to work with.
    struct Context {
        let vmm: String
        let files: LabFiles
        /// The guest's initrd.
        let initrd: String
        /// What SeaBIOS starts from.
        let disk: String
        /// How often the VMM is replaced in those that are about that.
        let updates: Int
    }

    /// - Returns: what was seen.
    /// - Throws: what was wrong.
    func run(_ context: Context) throws -> String {
        switch self {
        case .boot: try work(context, cpus: 1, devices: .none, updates: 1)
        case .bootSMP: try work(context, cpus: 2, devices: .none, updates: 1)
        case .mmio: try work(context, cpus: 1, devices: .mmio, updates: context.updates)
        case .pci: try work(context, cpus: 2, devices: .pci, updates: context.updates)
        case .seabios: try LabFirmware.run(context)
        case .vfio:
            try work(context, cpus: 1, devices: .passedThrough(try LabHost.bindDevices()), updates: context.updates)
        }
    }

    private func work(_ context: Context, cpus: Int, devices: LabGuest.Devices, updates: Int) throws -> String {
        let directory = try TemporaryDirectory.scratch(), start = Clock.now
        let guest = try LabGuest(
            vmm: context.vmm, kernel: context.files.guest.image, initrd: context.initrd, cpus: cpus, devices: devices,
            directory: directory)
        try guest.boot(cpus: cpus)
        let booted = Clock.now - start
        for number in 0..<updates {
            do { try guest.update() } catch { throw Failure("update \(number + 1): \(error)") }
        }
        try guest.finish()
        let work = (guest.reports.last?.work ?? [:]).sorted { $0.key < $1.key }.filter { $0.value > 0 }
        return String(format: "at work after %.0f s; ", booted) + "\(updates) updates, nothing lost: "
            + work.map { "\($0.value) \($0.key)" }.joined(separator: ", ")
    }
}
