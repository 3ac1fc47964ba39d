import Foundation
import TestSupport
import Testing

/// Resets of devices that cannot be reset alone.
@Suite("resets of vfio-pci", .enabled(if: GuestBuilder.isAvailable, "needs the toolchain's clang and lld"))
struct VFIOResetTests {
    private static let slot = Array(VFIOSeveralDevicesTests.simulated.prefix(4))

    /// The same devices by group, and by iommufd.
    private static func devices(_ names: ArraySlice<String>, iommufd: Bool) -> [String] {
        let all = names.flatMap { ["-device", "vfio-pci,host=\($0)" + (iommufd ? ",iommufd=a" : "")] }
        return iommufd ? ["-object", "iommufd,id=a"] + all : all
    }

    @Test("a device without a reset of its own is reset with its slot", arguments: ["reset", "flr"], [false, true])
    func alone(_ lack: String, _ iommufd: Bool) throws {
        let guest = try VFIOGuest(
            options: ["--lack", lack], devices: Self.devices(VFIOSeveralDevicesTests.names.prefix(1), iommufd: iommufd))
        try guest.waitForProgress()
        #expect(guest.requests("hot_reset") == ["hot_reset"] && guest.requests("reset") == [])
        try guest.qmp.execute("system_reset")
        try guest.waitForReset()
        #expect(guest.requests("hot_reset").count == 2 && guest.requests("refused") == [])
        // Not over an update.
        try guest.update()
        try guest.waitForProgress()
        #expect(guest.requests("hot_reset").count == 2)
        try guest.end()
    }

    @Test("what changes its power state to reset does so where its slot cannot be reset")
    func powerState() throws {
        let guest = try VFIOGuest(options: ["--lack", "flr", "--lack", "hot_reset"])
        try guest.waitForProgress()
        #expect(guest.requests("reset") == ["reset"] && guest.requests("hot_reset") == [])
        try guest.end()
    }

    @Test("functions of a slot are reset together, and once", arguments: [false, true])
    func together(_ iommufd: Bool) throws {
        let devices = Self.devices(VFIOSeveralDevicesTests.names.prefix(2), iommufd: iommufd)
        let guest = try VFIOGuest(options: Self.slot + ["--lack", "reset"], devices: devices)
        try guest.waitForProgress()
        #expect(guest.requests("hot_reset") == ["hot_reset device=0000:06:0d.0"])
        for round in 2...3 {
            let before = guest.serial.split(separator: "\n").count { $0.hasPrefix("vfio1: 64 ") }
            try guest.qmp.execute("system_reset")
            try eventually("the guest counts from the start") {
                guest.serial.split(separator: "\n").count { $0.hasPrefix("vfio1: 64 ") } > before
            }
            #expect(guest.requests("hot_reset").count == round)
        }
        #expect(guest.requests("refused") == [] && guest.requests("fault") == [])
        try guest.waitForProgress()
        try guest.end()
    }

    @Test(
        "a function whose neighbour is somebody else's is not reset with it",
        arguments: [
            (false, "depends on group 9 which is not owned."),
            (true, "depends on device 0000:06:0d.1 which is not owned."),
        ])
    func notOwned(_ iommufd: Bool, _ text: String) throws {
        let devices = Self.devices(VFIOSeveralDevicesTests.names.prefix(1), iommufd: iommufd)
        let guest = try VFIOGuest(options: Self.slot + ["--group", "9", "--lack", "reset"], devices: devices)
        try guest.waitForProgress()
        #expect(guest.process.errors.contains("vfio: Cannot reset device 0000:06:0d.0, \(text)"))
        #expect(guest.requests("hot_reset") == [] && guest.requests("reset") == [])
        try guest.end()
    }

    @Test("a neighbour in the group that the guest does not have is reset too", arguments: [false, true])
    func spare(_ iommufd: Bool) throws {
        let devices = Self.devices(VFIOSeveralDevicesTests.names.prefix(1), iommufd: iommufd)
        let guest = try VFIOGuest(options: Self.slot + ["--lack", "reset"], devices: devices)
        try guest.waitForProgress()
        #expect(guest.requests("hot_reset").count == 1 && guest.requests("refused") == [])
        try guest.end()
    }

    @Test(
        "a reset that fails is a warning",
        arguments: [
            (["--refuse", "reset=5", "--lack", "hot_reset"], "failed to reset the device: Input/output error"),
            (["--lack", "reset", "--lie", "hot_reset_count"], ""),
            (["--lack", "reset", "--refuse", "hot_reset=5"], ""),
        ])
    func fails(_ options: [String], _ text: String) throws {
        let guest = try VFIOGuest(options: options)
        try guest.waitForProgress()
        #expect(text.isEmpty || guest.process.errors.contains(text), "\(guest.process.errors)")
        try guest.end()
    }
}
