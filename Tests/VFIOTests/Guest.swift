import Foundation
import TestSupport
import Testing

/// A real `baton` with the device of `vfio-simulator` and the bare-metal guest
/// for it.
final class VFIOGuest {
    /// How the guest wants to be interrupted.
    enum Interrupts: String, CaseIterable {
        case msix = "MSIX"
        case msi = "MSI"
        case intx = "INTX"

        var machine: String { self == .intx ? "virt" : "virt,aia=aplic-imsic" }
        /// The kernel's number of the kind.
        var index: Int { self == .intx ? 0 : self == .msi ? 1 : 2 }
        var count: Int { self == .intx ? 1 : 4 }
    }

    static let device = "0000:06:0d.0"

    let directory: TemporaryDirectory
    let process: ChildProcess
    let qmp: QMPClient
    let arguments: [String]

    static func image(_ interrupts: Interrupts) throws -> String {
        let guests = "\(Products.repository)/Tests/Guests"
        return try GuestBuilder.build(
            "vfio-\(interrupts.rawValue)",
            sources: ["vfio.c": try String(contentsOfFile: "\(guests)/vfio/vfio.c", encoding: .utf8)],
            flags: ["-fpie", "-D\(interrupts.rawValue)"],
            linkerScript: try String(contentsOfFile: "\(guests)/flat.ld", encoding: .utf8), binary: true)
    }

    /// What sysfs would have of the device.
    static func makeSysfs(_ directory: TemporaryDirectory) throws -> String {
        let path = directory.file(device)
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
        try? FileManager.default.removeItem(atPath: "\(path)/iommu_group")
        try FileManager.default.createSymbolicLink(
            atPath: "\(path)/iommu_group", withDestinationPath: "../../../../kernel/iommu_groups/7")
        return path
    }

    static func arguments(
        _ interrupts: Interrupts, in directory: TemporaryDirectory, device: String? = nil,
        extra: [String] = ["-cpr-enable", "restart"]
    ) throws -> [String] {
        [
            Products.baton, "-machine", "\(interrupts.machine),memory-backend=ram", "-m", "16M",
            "-object", "memory-backend-memfd,id=ram,size=16M,share=on", "-bios", "none",
            "-kernel", try image(interrupts),
            "-device", try device ?? "vfio-pci,sysfsdev=\(makeSysfs(directory))",
            "-nodefaults", "-nographic", "-serial", "file:\(directory.file("serial"))",
            "-qmp", "unix:\(directory.file("qmp")),server=on,wait=off",
        ] + extra
    }

    static func simulator(_ directory: TemporaryDirectory, _ options: [String] = []) -> [String] {
        ["\(Products.directory)/vfio-simulator", "--log", directory.file("log")] + options + ["--"]
    }

    /// - Parameter options: of the simulator.
    init(
        _ interrupts: Interrupts = .msix, options: [String] = [], extra: [String] = ["-cpr-enable", "restart"]
    ) throws {
        directory = try TemporaryDirectory()
        arguments = try Self.arguments(interrupts, in: directory, extra: extra)
        process = try ChildProcess(Self.simulator(directory, options) + arguments)
        do { qmp = try QMPClient(path: directory.file("qmp")) } catch { throw TestError("\(error): \(process.errors)") }
    }

    deinit {
        // The simulator ends with the last VMM, its child or one that took the
        // guest back.
        try? qmp.executeWithoutAnswer("quit")
        for _ in 0..<3000 where process.isRunning { usleep(1000) }
    }

    /// What the guest has printed.
    var serial: String { (try? String(contentsOfFile: directory.file("serial"), encoding: .utf8)) ?? "" }

    /// How many interrupts the guest has had, and how far the device has
    /// counted in its memory.
    func progress() throws -> (interrupts: Int, count: Int) {
        let text = serial
        guard !text.contains("FAIL") else { throw TestError("the guest says \(text.suffix(200))") }
        let complete = text.split(separator: "\n", omittingEmptySubsequences: false).dropLast()
        guard let line = complete.last(where: { $0.hasPrefix("vfio: ") }) else { return (0, 0) }
        let numbers = line.split(separator: " ").dropFirst().compactMap { Int($0) }
        guard numbers.count == 2 else { throw TestError("the guest says \(line)") }
        return (numbers[0], numbers[1])
    }

    /// Waits until the guest has had at least 128 more interrupts.
    func waitForProgress() throws {
        let before = try progress()
        let what = "the guest's interrupts go on past \(before): \(process.errors)\(log.suffix(12))"
        try eventually(what, by: .seconds(30)) {
            let now = try progress()
            return now.interrupts >= before.interrupts + 128 && now.count > before.count
        }
    }

    func update(_ argv: [String]? = nil, _ options: [String: Any] = [:]) throws {
        try qmp.execute("cpr-update", options.merging(["argv": argv ?? arguments]) { $1 })
    }

    func end() throws {
        try qmp.execute("quit")
        #expect(try process.waitForExit() == .status(0))
    }

    // MARK: What the simulator saw

    /// The simulator's log, a line a request.
    var log: [String] { Self.log(directory) }

    static func log(_ directory: TemporaryDirectory) -> [String] {
        ((try? String(contentsOfFile: directory.file("log"), encoding: .utf8)) ?? "")
            .split(separator: "\n").map(String.init)
    }

    /// The same without the process.
    var requests: [String] { log.map { String($0.drop { $0 != " " }.dropFirst()) } }

    func requests(_ prefix: String) -> [String] { requests.filter { $0.hasPrefix(prefix) } }
}
