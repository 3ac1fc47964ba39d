import Foundation
import TestSupport
import Testing

/// Why `baton-demo cloud` cannot run here; empty when it can.
private let problem: String = {
    do {
        let check = try ChildProcess([demo, "cloud", "--check", "--cache", cache])
        return try check.waitForExit() == .status(0) ? "" : check.errors
    } catch {
        return "\(error)"
    }
}()

/// A whole Debian by UEFI, GRUB and cloud-init, on software harts.
@Suite(
    "Debian on a disk", .serialized,
    .enabled(
        if: ProcessInfo.processInfo.environment["BATON_DEBIAN_DISK_TESTS"] != nil,
        "boots Debian from a disk, and at first sets it up, for many minutes: set BATON_DEBIAN_DISK_TESTS=1"),
    .enabled(if: problem.isEmpty, Comment(rawValue: problem)))
struct DebianDiskTests {
    @Test("an SSH session stays over ten updates")
    func session() throws {
        let output = try ChildProcess.run([demo, "cloud", "--cache", cache], by: .seconds(5400))
        #expect(output.split(separator: "\n").count { $0.hasPrefix("update ") && $0.contains("(same)") } == 10)
        #expect(output.contains("10 updates, and the SSH session stayed"))
    }

    @Test("fio verifies a raw and a qcow2 disk over thirty updates of each")
    func fio() throws {
        let output = try ChildProcess.run([demo, "fio", "--cache", cache], by: .seconds(5400))
        for format in ["raw", "qcow2"] {
            #expect(output.contains("\(format): 30 updates, fio has written and verified"), "\(output)")
        }
    }
}
