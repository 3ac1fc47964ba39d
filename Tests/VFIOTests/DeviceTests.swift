import Foundation
import TestSupport
import Testing

@Suite("vfio-pci", .enabled(if: GuestBuilder.isAvailable, "needs the toolchain's clang and lld"))
struct VFIODeviceTests {
    @Test("BARs, DMA and interrupts of the device reach the guest", arguments: VFIOGuest.Interrupts.allCases)
    func works(_ interrupts: VFIOGuest.Interrupts) throws {
        let guest = try VFIOGuest(interrupts)
        try guest.waitForProgress()
        try guest.waitForProgress()
        let requests = guest.requests
        #expect(guest.requests("refused") == [] && guest.requests("fault") == [])
        // The order in which the kernel wants these.
        let order = [
            "open_group", "open_container", "set_container", "set_iommu", "map_dma", "get_device_fd", "device_info",
            "reset",
        ]
        let places = try order.map { name in try #require(requests.firstIndex { $0.hasPrefix(name) }, "\(name)") }
        #expect(places == places.sorted(), "\(requests)")
        #expect(requests.contains("map_dma iova=0x80000000 size=0x1000000 rw"))
        #expect(guest.requests("set_irqs").last == "set_irqs index=\(interrupts.index) count=\(interrupts.count)")
        try guest.end()
    }

    @Test("without mmap every access is the VMM's", arguments: [VFIOGuest.Interrupts.msix, .intx])
    func withoutMmap(_ interrupts: VFIOGuest.Interrupts) throws {
        let guest = try VFIOGuest(interrupts, options: ["--lack", "mmap"])
        try guest.waitForProgress()
        #expect(guest.requests("refused") == [])
        try guest.end()
    }

    @Test("a reset of the machine resets the device and its interrupts")
    func reset() throws {
        let guest = try VFIOGuest()
        try guest.waitForProgress()
        let before = guest.requests.count
        try guest.qmp.execute("system_reset")
        try eventually("the guest starts again") {
            guest.requests.dropFirst(before).contains("set_irqs index=2 count=4")
        }
        try guest.waitForReset()
        let since = guest.requests.dropFirst(before)
        #expect(since.filter { $0 == "reset" }.count == 1)
        #expect(guest.requests("refused") == [] && guest.requests("fault") == [])
        try guest.end()
    }

    @Test("a device without a reset is used all the same")
    func withoutReset() throws {
        let guest = try VFIOGuest(options: ["--lack", "reset"])
        try guest.waitForProgress()
        #expect(guest.requests("refused") == [] && guest.requests("reset") == [])
        try guest.end()
    }

    @Test("a guest that is stopped has its interrupts kept")
    func stopped() throws {
        let guest = try VFIOGuest()
        try guest.waitForProgress()
        try guest.qmp.execute("stop")
        try guest.qmp.execute("cont")
        try guest.waitForProgress()
        try guest.end()
    }

    // MARK: What cannot be

    struct Refusal: CustomTestStringConvertible {
        let options: [String]
        let error: String
        var testDescription: String { options.joined(separator: " ") }
    }

    static let refusals = [
        Refusal(options: ["--refuse", "open_group=13"], error: "failed to open /dev/vfio/7: Permission denied"),
        Refusal(options: ["--group", "8"], error: "failed to open /dev/vfio/7: No such file or directory"),
        Refusal(options: ["--lack", "viable"], error: "group 7 is not viable"),
        Refusal(
            options: ["--refuse", "open_container=2"],
            error: "failed to setup container for group 7: failed to open /dev/vfio/vfio: No such file or directory"),
        Refusal(
            options: ["--refuse", "get_api_version=1"],
            error: "failed to setup container for group 7: supported vfio version: 0, reported version: 1"),
        Refusal(
            options: ["--lack", "type1"], error: "failed to setup container for group 7: No available IOMMU models"),
        Refusal(
            options: ["--refuse", "set_container=22"],
            error: "failed to setup container for group 7: Failed to set group container: Invalid argument"),
        Refusal(
            options: ["--refuse", "set_iommu=1"],
            error: "failed to setup container for group 7: Failed to set iommu for container: Operation not permitted"),
        Refusal(options: ["--refuse", "map_dma=12:2"], error: "for DMA: Cannot allocate memory"),
        Refusal(
            options: ["--device", "0000:06:0d.1"], error: "error getting device from group 7: No such device"),
        Refusal(options: ["--refuse", "device_info=5"], error: "error getting device info: Input/output error"),
        Refusal(options: ["--lack", "pci"], error: "this isn't a PCI device"),
        Refusal(options: ["--refuse", "region_info=22:3"], error: "failed to get region 2 info: Invalid argument"),
    ]

    @Test("what the kernel refuses ends the start with its reason", arguments: refusals)
    func refused(_ refusal: Refusal) throws {
        let directory = try TemporaryDirectory()
        let arguments = try VFIOGuest.arguments(.msix, in: directory)
        let process = try ChildProcess(VFIOGuest.simulator(directory, refusal.options) + arguments)
        #expect(try process.waitForExit() == .status(1))
        #expect(process.errors.contains("vfio \(VFIOGuest.device): "), "\(process.errors)")
        #expect(process.errors.contains(refusal.error), "\(process.errors)")
    }

    static let badValues: [(String, String)] = [
        ("vfio-pci", "No provided host device"),
        ("vfio-pci,host=", "Property 'vfio-pci.host' doesn't take value ''"),
        ("vfio-pci,host=zz:00.0", "Property 'vfio-pci.host' doesn't take value 'zz:00.0'"),
        ("vfio-pci,host=0000:06:20.0", "Property 'vfio-pci.host' doesn't take value '0000:06:20.0'"),
        ("vfio-pci,host=0000:06:0d.8", "Property 'vfio-pci.host' doesn't take value '0000:06:0d.8'"),
        ("vfio-pci,host=0000:06:0d", "Property 'vfio-pci.host' doesn't take value '0000:06:0d'"),
        ("vfio-pci,host=1:0:06:0d.0", "Property 'vfio-pci.host' doesn't take value '1:0:06:0d.0'"),
        ("vfio-pci,host=-6:0d.0", "Property 'vfio-pci.host' doesn't take value '-6:0d.0'"),
        (
            "vfio-pci,host=fffe:ff:1f.7",
            "vfio fffe:ff:1f.7: no such host device: /sys/bus/pci/devices/fffe:ff:1f.7: No such file or directory"
        ),
        ("vfio-pci,host=ff:1F.7", "vfio 0000:ff:1f.7: no such host device: /sys/bus/pci/devices/0000:ff:1f.7"),
        ("vfio-pci,sysfsdev=/nonexistent/x", "vfio x: no such host device: /nonexistent/x: No such file or directory"),
        ("vfio-pci,sysfsdev=/tmp", "vfio tmp: no iommu_group found: No such file or directory"),
        ("vfio-pci,sysfsdev=relative", "Property 'vfio-pci.sysfsdev' doesn't take value 'relative'"),
        ("vfio-pci,sysfsdev=/", "Property 'vfio-pci.sysfsdev' doesn't take value '/'"),
        ("vfio-pci,color=red", "Property 'vfio-pci.color' not found"),
        ("vfio-pci,host=06:0d.0,bus=virtio-mmio-bus.0", "Device 'vfio-pci' can't go on virtio-bus bus"),
    ]

    @Test("bad options are refused with QEMU's words", arguments: badValues)
    func badValue(_ device: String, _ error: String) throws {
        let directory = try TemporaryDirectory()
        let process = try ChildProcess(try VFIOGuest.arguments(.msix, in: directory, devices: ["-device", device]))
        #expect(try process.waitForExit() == .status(1))
        #expect(process.errors.contains(error), "\(process.errors)")
    }

    @Test("a device cannot be given twice")
    func twice() throws {
        let directory = try TemporaryDirectory()
        let again = ["-device", "vfio-pci,sysfsdev=\(try VFIOGuest.makeSysfs(directory))"]
        let arguments = try VFIOGuest.arguments(.msix, in: directory, extra: again)
        let process = try ChildProcess(VFIOGuest.simulator(directory) + arguments)
        #expect(try process.waitForExit() == .status(1))
        #expect(process.errors.contains("vfio \(VFIOGuest.device): device is already attached"), "\(process.errors)")
    }

    @Test("a device whose interrupts the kernel does not give leaves the VM running")
    func noInterrupts() throws {
        let guest = try VFIOGuest(options: ["--refuse", "set_irqs=28"])
        try guest.process.waitForErrors("failed to set up 4 msix interrupts: No space left on device")
        let status = try guest.qmp.execute("query-status") as? [String: Any]
        #expect(status?["status"] as? String == "running")
        try guest.end()
    }
}

extension VFIOGuest {
    /// Waits until the guest that was reset has had interrupts anew.
    func waitForReset() throws {
        try eventually("the guest counts from the start") {
            let lines = serial.split(separator: "\n").filter { $0.hasPrefix("vfio: 64 ") }
            return lines.count == 2
        }
    }
}
