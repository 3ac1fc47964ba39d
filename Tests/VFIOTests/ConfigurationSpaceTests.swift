import Foundation
import TestSupport
import Testing

/// Extended capabilities, expansion ROM, and devices that say what cannot be.
@Suite("configuration space of vfio-pci", .enabled(if: GuestBuilder.isAvailable, "needs the toolchain's clang and lld"))
struct VFIOConfigurationSpaceTests {
    private func guest(_ options: [String], _ properties: String = "") throws -> VFIOGuest {
        try VFIOGuest(options: options, devices: ["-device", "vfio-pci,host=06:0d.0\(properties)"])
    }

    /// What the guest finds: its device is integrated (type 9), ARI and SR-IOV
    /// (14, 16) are not there, a resizable BAR (21) has its size of now.
    static let extended: [([String], String)] = [
        ([], "type 9 1 3 21 11"),
        (["--lie", "ari_first"], "type 9 0 3 21 11"),
        (["--lie", "ext_loop"], "type 9 1 3 21 11"),
        (["--lie", "ext_wild"], "type 9 1 3 21 11"),
        (["--lack", "express"], ""),
        (["--lie", "legacy_endpoint"], ""),
    ]

    @Test("extended capabilities that are of the host's bus are hidden", arguments: extended)
    func capabilities(_ options: [String], _ found: String) throws {
        let guest = try guest(options)
        #expect(try guest.finding("extended") == found)
        try guest.waitForProgress()
        // The next VMM finds the same: it refuses a checkpoint of another space.
        try guest.update()
        try guest.waitForProgress()
        try guest.end()
    }

    // MARK: ROM

    /// The bytes of the simulated device's ROM.
    private static let sum = (0..<0x8000).reduce(0) { $0 + ($1 * 7 & 0xff) } + 0x55 + (0xaa - 7) + (64 - 14)

    @Test("the device's ROM is read", arguments: ["", ",rombar=1"])
    func rom(_ properties: String) throws {
        let guest = try guest([], properties)
        #expect(try guest.finding("rom") == "32768 43605 \(Self.sum)")
        try guest.update()
        try guest.waitForProgress()
        try guest.qmp.execute("system_reset")
        try guest.waitForReset()
        #expect(
            guest.serial.split(separator: "\n").filter { $0.hasPrefix("rom: ") }.map(String.init)
                == Array(repeating: "rom: 32768 43605 \(Self.sum)", count: 2))
        try guest.end()
    }

    @Test(
        "no ROM is none",
        arguments: [
            ([], ",rombar=0"), (["--lack", "rom"], ""), ([], ",romfile="), (["--refuse", "region_info=22:8"], ""),
        ])
    func noROM(_ options: [String], _ properties: String) throws {
        let guest = try guest(options, properties)
        #expect(try guest.finding("rom") == "0")
        try guest.waitForProgress()
        try guest.end()
    }

    @Test("romfile= takes its place, in a BAR of the next power of two")
    func romFile() throws {
        let directory = try TemporaryDirectory()
        let file = directory.file("rom")
        try Data([0x55, 0xaa] + Array(repeating: 1, count: 4998)).write(to: URL(fileURLWithPath: file))
        let guest = try guest([], ",romfile=\(file)")
        #expect(try guest.finding("rom") == "8192 43605 \(0xff + 4998 + 3192 * 255)")
        try guest.waitForProgress()
        try guest.update()
        try guest.waitForProgress()
        // The next VMM must have a ROM of that size.
        try Data([1, 2, 3]).write(to: URL(fileURLWithPath: file))
        let before = guest.log.count
        let error = #expect(throws: QMPClient.Refusal.self) { try guest.update() }
        #expect(error?.text.contains("has an expansion ROM of 8192 bytes, this device one of 2048") == true)
        #expect(guest.log.count == before)
        try guest.waitForProgress()
        try guest.end()
    }

    static let badROMs: [(String, String)] = [
        (",rombar=x", "rombar"),
        (",rombar=-1", "rombar"),
        (",romfile=/nonexistent", "failed to find romfile \"/nonexistent\": No such file or directory"),
        (",romfile=/dev/null", "failed to load romfile \"/dev/null\": it is not a file"),
        (",romfile=/", "failed to load romfile \"/\": it is not a file"),
    ]

    @Test("a ROM that cannot be is refused", arguments: badROMs)
    func badROM(_ properties: String, _ text: String) throws {
        let errors = try VFIOGuest.errors([], ["-device", "vfio-pci,host=06:0d.0\(properties)"])
        #expect(errors.contains(text), "\(errors)")
    }

    @Test("an empty romfile is refused")
    func emptyROM() throws {
        let directory = try TemporaryDirectory()
        try directory.write("rom", "")
        let errors = try VFIOGuest.errors([], ["-device", "vfio-pci,host=06:0d.0,romfile=\(directory.file("rom"))"])
        #expect(errors.contains("romfile \"\(directory.file("rom"))\" is empty"), "\(errors)")
    }

    // MARK: Hostile devices

    @Test("a ROM of a size that cannot be is not shown")
    func hostileROM() throws {
        let guest = try guest(["--lie", "rom_size"])
        #expect(try guest.finding("rom") == "0")
        #expect(guest.process.errors.contains("the expansion ROM of 1099511627776 bytes is not shown to the guest"))
        try guest.waitForProgress()
        try guest.end()
    }

    static let lies = [
        ("region", "region 0 of 65536 bytes at 0xfffffffffffff000 is not in the device's file"),
        ("config_size", "the configuration space has 100 bytes"),
        ("msix_place", "the MSI-X table is at 0xfff0 of BAR 2, where nothing is"),
    ]

    @Test("what cannot be is refused", arguments: lies)
    func hostile(_ lie: String, _ text: String) throws {
        let errors = try VFIOGuest.errors(["--lie", lie], ["-device", "vfio-pci,host=06:0d.0"])
        #expect(errors.contains("vfio 0000:06:0d.0: \(text)"), "\(errors)")
    }
}
