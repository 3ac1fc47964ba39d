import Foundation
import TestSupport
import Testing

/// UEFI for riscv64, as Debian has it.
@Suite(.enabled(if: edk2 != nil, "needs Debian's qemu-efi-riscv64, which could not be downloaded"))
struct FirmwareTests {
    private let directory: TemporaryDirectory
    private let code: String
    private let variables: String

    init() throws {
        directory = try TemporaryDirectory()
        code = try #require(edk2)
        variables = directory.file("vars.fd")
        let template = code.replacingOccurrences(of: "_CODE.fd", with: "_VARS.fd")
        try FileManager.default.copyItem(atPath: template, toPath: variables)
    }

    private var flash: [String] {
        [
            "-drive", "if=pflash,unit=0,format=raw,readonly=on,file=\(code)", "-drive",
            "if=pflash,unit=1,format=raw,file=\(variables)",
        ]
    }

    private func command(_ flash: [String]) -> [String] {
        [
            Products.baton, "-M", "virt", "-m", "256M", "-nodefaults", "-serial", "file:\(directory.file("serial"))",
            "-qmp", "unix:\(directory.file("qmp")),server=on,wait=off", "-sandbox", "paths=\(directory.path)",
            "-cpr-enable", "restart",
        ] + flash
    }

    /// Runs UEFI until it has found nothing to boot.
    private func start(_ command: [String]) throws -> (ChildProcess, QMPClient) {
        let process = try ChildProcess(command)
        let qmp = try QMPClient(path: directory.file("qmp"), of: process)
        try wait(for: 1, process)
        return (process, qmp)
    }

    private func wait(for count: Int, _ process: ChildProcess) throws {
        try eventually("UEFI starts; it said: \(said.suffix(2000)) \(process.report)", by: .seconds(300)) {
            starts >= count || !process.isRunning
        }
        #expect(starts == count, "\(said.suffix(2000)) \(process.report)")
    }

    private func end(_ process: ChildProcess, _ qmp: QMPClient) throws {
        try qmp.execute("quit")
        #expect(try process.waitForExit() == .status(0), "\(process.report)")
    }

    private var said: String { (try? String(contentsOfFile: directory.file("serial"), encoding: .utf8)) ?? "" }
    /// How often UEFI has found nothing to boot, and started its shell.
    private var starts: Int { said.components(separatedBy: "UEFI Interactive Shell").count - 1 }

    @Test func bootsKeepsItsVariablesAndGoesOnOverUpdates() throws {
        let template = try Data(contentsOf: URL(fileURLWithPath: variables))
        let command = command(flash)
        let (process, qmp) = try start(command)
        #expect(try Data(contentsOf: URL(fileURLWithPath: variables)) != template)
        for _ in 0..<3 { try qmp.execute("cpr-update", ["argv": command]) }
        try qmp.execute("system_reset")
        try wait(for: 2, process)
        try end(process, qmp)
    }

    /// EDK2's own reader of the tables, in its shell.
    @Test func readsTheSMBIOSTables() throws {
        let socket = directory.file("console")
        let command =
            command(flash).map { $0.hasPrefix("file:") ? "unix:\(socket),server=on,wait=off" : $0 } + [
                "-smbios", "type=1,manufacturer=Baton,serial=XYZ123",
                "-object", "memory-backend-memfd,id=m0,size=192M", "-object", "memory-backend-memfd,id=m1,size=64M",
                "-numa", "node,memdev=m0", "-numa", "node,memdev=m1",
                "-device", "pcie-root-port,id=rp0,chassis=1", "-device", "virtio-rng-pci,bus=rp0",
            ]
        let process = try ChildProcess(command)
        let qmp = try QMPClient(path: directory.file("qmp"), of: process)
        let console = try StreamClient(socket: socket, patience: 300)
        try console.expect("Shell>")
        try console.send("smbiosview -t 1\r")
        try console.expect("Manufacturer: Baton")
        try console.expect("SerialNumber: XYZ123")
        // 256 MiB, of both nodes.
        try console.send("smbiosview -t 17\r")
        try console.expect("Size: 256")
        // What the guest has read stays what it is.
        try qmp.execute("cpr-update", ["argv": command])
        let other = command.map { $0.replacingOccurrences(of: "XYZ123", with: "XYZ124") }
        #expect(
            refusal { try qmp.execute("cpr-update", ["argv": other, "preflight": false]) }
                .contains("the SMBIOS tables of the machine that was saved are others"))
        try end(process, qmp)
    }

    /// QEMU's other way to say it.
    @Test func nodesAreNamedAsPropertiesOfTheMachine() throws {
        let (process, qmp) = try start(
            command([
                "-machine", "pflash0=code,pflash1=vars,acpi=off", "-blockdev",
                "node-name=code,driver=file,read-only=on,filename=\(code)", "-blockdev",
                "node-name=vars,driver=file,filename=\(variables)",
            ]))
        try end(process, qmp)
    }
}

private let edk2 = Products.laterDebian("qemu-efi-riscv64")?.first
