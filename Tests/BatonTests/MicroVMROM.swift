import Foundation
import TestSupport
import Testing

/// A guest of a few instructions for the machine `microvm` on KVM: firmware of 64 KiB, whose code runs in real mode from
/// its first byte on, with everything but CS as after a reset.
struct MicroVMROM {
    /// Whether a machine can be made.
    static let isUsable: Bool = {
        guard access("/dev/kvm", R_OK | W_OK) == 0 else { return false }
        return (try? MicroVMROM([0xf4]).run(by: .seconds(20))) != nil
    }()
    static let usable: Comment = "needs a /dev/kvm that can be used"

    let directory: TemporaryDirectory
    let path: String

    /// - Parameter code: below 64 KiB less 16 bytes.
    init(_ code: [UInt8]) throws {
        directory = try TemporaryDirectory()
        var bytes = Data(count: 1 << 16)
        bytes.replaceSubrange(0..<code.count, with: code)
        // At 16 bytes below the end: a jump to the first byte.
        bytes.replaceSubrange(0xfff0..<0xfff3, with: [0xe9, 0x0d, 0x00] as [UInt8])
        path = try directory.write("rom", bytes)
    }

    /// Writes the letters from a to z to the serial port, one each 65535 rounds of a loop, again and again. It goes
    /// wherever it is executed.
    static let letters: [UInt8] = [
        0xb0, 0x61,  // mov al, 'a'
        0xba, 0xf8, 0x03, 0xee,  // mov dx, 0x3f8; out dx, al
        0xb9, 0xff, 0xff, 0xe2, 0xfe,  // mov cx, 0xffff; loop to itself
        0xfe, 0xc0, 0x3c, 0x7b, 0x75, 0xf1, 0xeb, 0xed,  // inc al; to the out, after 'z' to the first
    ]

    var socket: String { directory.file("qmp") }

    var arguments: [String] { arguments() }

    /// - Parameter mode: of `-cpr-enable`.
    func arguments(cpu: String = "host", mode: String = "restart", extra: [String] = []) -> [String] {
        [
            Products.baton, "-M", "microvm", "-m", "16M", "-cpu", cpu, "-bios", path, "-nodefaults",
            "-serial", "file:\(directory.file("serial"))", "-device", "isa-debug-exit",
            "-qmp", "unix:\(socket),server=on,wait=off", "-sandbox", "paths=\(directory.path)", "-cpr-enable", mode,
        ] + extra
    }

    /// What the guest has written.
    var output: String { (try? String(contentsOfFile: directory.file("serial"), encoding: .utf8)) ?? "" }

    /// Waits until the guest has written more than it had.
    func awaitOutput(_ count: Int = 3) throws {
        let before = output.utf8.count
        try eventually("the guest goes on") { output.utf8.count >= before + count }
    }

    /// Starts a VM, and ends it by a client.
    @discardableResult
    func run(by deadline: Deadline) throws -> ChildProcess {
        let process = try ChildProcess(arguments)
        let qmp = try QMPClient(path: socket, of: process)
        try qmp.execute("quit")
        guard try process.waitForExit(by: deadline) == .status(0) else { throw TestError(process.report) }
        return process
    }
}
