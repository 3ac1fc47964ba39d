import Foundation
import TestSupport
import Testing

/// A real `baton` with the devices of `vfio-simulator` and the bare-metal guest
/// for them.
final class VFIOGuest: CountingDeviceGuest {
    typealias Interrupts = CountingDevice.Interrupts

    static let device = "0000:06:0d.0"

    let directory: TemporaryDirectory
    let process: ChildProcess
    let qmp: QMPClient
    let arguments: [String]
    let deviceCount: Int

    /// What sysfs would have of the device.
    static func makeSysfs(_ directory: TemporaryDirectory) throws -> String {
        let path = directory.file(device)
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
        try? FileManager.default.removeItem(atPath: "\(path)/iommu_group")
        try FileManager.default.createSymbolicLink(
            atPath: "\(path)/iommu_group", withDestinationPath: "../../../../kernel/iommu_groups/7")
        return path
    }

    /// One device of an iommufd.
    static let iommufd = ["-object", "iommufd,id=iommufd0", "-device", "vfio-pci,host=\(device),iommufd=iommufd0"]

    /// Which of the kernel's interfaces the one device is given by.
    enum Interface: CaseIterable {
        case container, iommufd
        var devices: [String]? { self == .iommufd ? VFIOGuest.iommufd : nil }
    }

    /// - Parameter devices: the options of the devices; by default one, in a container.
    static func arguments(
        _ interrupts: Interrupts, in directory: TemporaryDirectory, devices: [String]? = nil,
        extra: [String] = ["-cpr-enable", "restart"]
    ) throws -> [String] {
        [
            Products.baton, "-machine", "\(interrupts.machine),memory-backend=ram", "-m", "16M",
            "-object", "memory-backend-memfd,id=ram,size=16M,share=on", "-bios", "none",
            "-kernel", try CountingDevice.image(interrupts), "-nodefaults", "-nographic",
            "-serial", "file:\(directory.file("serial"))",
            "-qmp", "unix:\(directory.file("qmp")),server=on,wait=off", "-sandbox",
            "paths=\(TemporaryDirectory.parent)",
        ] + (try devices ?? ["-device", "vfio-pci,sysfsdev=\(makeSysfs(directory))"]) + extra
    }

    static func simulator(_ directory: TemporaryDirectory, _ options: [String] = []) -> [String] {
        ["\(Products.directory)/vfio-simulator", "--log", directory.file("log")] + options + ["--"]
    }

    /// - Parameter options: of the simulator.
    convenience init(
        _ interrupts: Interrupts = .msix, options: [String] = [], devices: [String]? = nil,
        extra: [String] = ["-cpr-enable", "restart"]
    ) throws {
        let directory = try TemporaryDirectory()
        let arguments = try Self.arguments(interrupts, in: directory, devices: devices, extra: extra)
        let process = try ChildProcess(Self.simulator(directory, options) + arguments)
        try self.init(directory: directory, process: process, arguments: arguments)
    }

    /// - Parameter process: the simulator, with a VMM of these arguments.
    init(directory: TemporaryDirectory, process: ChildProcess, arguments: [String]) throws {
        self.directory = directory
        self.process = process
        self.arguments = arguments
        deviceCount = max(1, arguments.count { $0.hasPrefix("vfio-pci,") })
        qmp = try QMPClient(path: directory.file("qmp"), of: process)
    }

    deinit {
        // The simulator ends with the last VMM, its child or one that took the
        // guest back.
        try? qmp.executeWithoutAnswer("quit")
        for _ in 0..<3000 where process.isRunning { usleep(1000) }
    }

    /// What the guest has found out about its first device: a line that begins so.
    func finding(_ name: String) throws -> String {
        var found: String?
        try eventually("the guest says what it has of \(name): \(serial)") {
            found = CountingDevice.finding(name, serial)
            return found != nil
        }
        return try #require(found)
    }

    // MARK: What the simulator saw

    /// The log without the process: a line a request.
    var requests: [String] { log.map { String($0.drop { $0 != " " }.dropFirst()) } }

    func requests(_ prefix: String) -> [String] { requests.filter { $0.hasPrefix(prefix) } }

    /// The names of what was requested since there were `count` lines.
    func names(since count: Int) -> [String] {
        requests.dropFirst(count).map { String($0.prefix { $0 != " " }) }
    }

    /// Starts a VMM that is to be refused.
    static func errors(_ options: [String], _ devices: [String], _ extra: [String] = []) throws -> String {
        let directory = try TemporaryDirectory()
        let arguments = try arguments(.msix, in: directory, devices: devices, extra: extra)
        let process = try ChildProcess(simulator(directory, options) + arguments)
        #expect(try process.waitForExit() == .status(1))
        return process.errors
    }
}
