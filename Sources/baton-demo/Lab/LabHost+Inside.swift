import Foundation
import Glibc
import ProcessSupport

/// What is done in the lab to the lab.
extension LabHost {
    /// A PCI device that a guest can be given.
    enum Device: CaseIterable {
        case edu, nvme, e1000e

        var address: String {
            switch self {
            case .edu: "0000:00:10.0"
            case .nvme: "0000:00:11.0"
            case .e1000e: "0000:00:12.0"
            }
        }

        /// The guest's work with it, by its name in a report.
        var work: String {
            switch self {
            case .edu: "transfers"
            case .nvme: "passed-blocks"
            case .e1000e: "passed-frames"
            }
        }
    }

    private static func write(_ text: String, to file: String) throws {
        let handle = open(file, O_WRONLY | O_CLOEXEC)
        guard handle >= 0 else { throw Failure.system(file) }
        defer { close(handle) }
        guard Glibc.write(handle, text, text.utf8.count) == text.utf8.count else {
            throw Failure.system("writing '\(text)' to \(file)")
        }
    }

    /// Gives a device to vfio-pci, if that does not have it yet.
    static func giveToVFIO(_ item: Device) throws {
        let bus = "/sys/bus/pci", address = item.address, device = "\(bus)/devices/\(address)"
        let taken = "\(bus)/drivers/vfio-pci/\(address)"
        guard !FileManager.default.fileExists(atPath: taken) else { return }
        if FileManager.default.fileExists(atPath: "\(device)/driver") {
            try write(address, to: "\(device)/driver/unbind")
        }
        try write("vfio-pci", to: "\(device)/driver_override")
        try write(address, to: "\(bus)/drivers_probe")
        guard FileManager.default.fileExists(atPath: taken) else { throw Failure("vfio-pci did not take \(address)") }
    }

    /// Has the kernel describe the pages of the lab's persistent memory, without which a file system has no DAX on it.
    /// That is written down in the memory itself, and so is there already in later Linuxes
    /// (Documentation/driver-api/nvdimm/nvdimm.rst of Linux; `ndctl create-namespace -m fsdax --map=mem` does the same).
    /// - Parameter device: the block device that it is, and goes on being.
    static func makePersistentMemory(_ device: String) throws {
        let bus = "/sys/bus/nd/devices", drivers = "/sys/bus/nd/drivers/nd_pmem"
        guard FileManager.default.fileExists(atPath: "\(bus)/namespace0.0") else {
            throw Failure("the lab has no persistent memory")
        }
        let answer = "/sys/class/block/\((device as NSString).lastPathComponent)/queue/dax"
        func isReady() -> Bool { (try? String(contentsOfFile: answer, encoding: .utf8))?.hasPrefix("1") == true }
        guard !isReady() else { return }
        let uuid = try String(contentsOfFile: "/proc/sys/kernel/random/uuid", encoding: .utf8)
        try write("namespace0.0", to: "\(drivers)/unbind")
        try write("ram", to: "\(bus)/pfn0.0/mode")
        try write(uuid, to: "\(bus)/pfn0.0/uuid")
        try write("namespace0.0", to: "\(bus)/pfn0.0/namespace")
        try write("pfn0.0", to: "\(drivers)/bind")
        guard isReady() else { throw Failure("\(device) does not become a device with DAX") }
    }

    /// Makes a directory in the lab what it is outside, and shared with it: what else is written in the lab goes with
    /// its Linux. The lab must have the Live Update Orchestrator, as only such a lab has the directory.
    static func mountShared(_ directory: String) throws {
        guard access("/dev/liveupdate", R_OK | W_OK) == 0 else {
            throw Failure.system("the lab has no Live Update Orchestrator")
        }
        let options = "trans=virtio,version=9p2000.L,msize=524288,cache=none"
        guard mount(sharedTag, directory, "9p", 0, options) == 0 else {
            throw Failure.system("mounting the lab's shared directory")
        }
    }

    /// Has systemd end its services, and the lab's Linux, and execute another.
    /// - Parameter kexec: a program that gets the kernel and initrd ready.
    static func restartBySystemd(kexec: String, kernel: LinuxKernel, initrd: String) throws -> Never {
        try Tool.require([kexec, kernel.image, initrd, "--load"])
        try Tool.require(["systemctl", "kexec"])
        // This process is of a service, too.
        while true { pause() }
    }

    /// Ends the lab's Linux, and has another start.
    /// - Parameters:
    ///   - kexec: a program that executes the kernel and initrd; nil: by a reset of the machine.
    ///   - kernel: by default the one that a lab usually has.
    ///   - initrd: of the lab.
    static func restart(
        kexec: String?, kernel: LinuxKernel? = nil, _ files: LabFiles, initrd: String
    ) throws -> Never {
        try Tool.require(kexec.map { [$0, (kernel ?? files.host).image, initrd] } ?? [files.busybox, "reboot", "-f"])
        while true { pause() }
    }
}
