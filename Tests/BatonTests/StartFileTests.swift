import Foundation
import TestSupport
import Testing

/// What the machine is started from stays with the VM, whatever becomes of its name.
@Suite("Files that the machine starts from")
struct StartFileTests {
    /// A guest with a kernel of its own.
    private func guest() throws -> (guest: CountingGuest, kernel: String, directory: TemporaryDirectory) {
        let directory = try TemporaryDirectory()
        let kernel = directory.file("kernel")
        try FileManager.default.copyItem(atPath: CountingGuest.image(), toPath: kernel)
        return (
            try CountingGuest(extra: ["-cpr-enable", "restart", "-kernel", kernel]), kernel,
            directory
        )
    }

    /// Resets the guest, and waits until it has begun anew.
    private func reset(_ guest: CountingGuest) throws {
        try guest.qmp.execute("stop")
        guest.setWord(0, 0)
        try guest.qmp.execute("system_reset")
        try guest.qmp.execute("cont")
        try eventually("the guest begins anew; \(guest.process.report)") { guest.word(0) != 0 && guest.count > 0 }
        try guest.expectRightSum()
    }

    @Test("a kernel that is removed is there at the next reset, over updates too")
    func removed() throws {
        let (guest, kernel, directory) = try guest()
        withExtendedLifetime(directory) {}
        try FileManager.default.removeItem(atPath: kernel)
        try reset(guest)
        for _ in 0..<2 {
            #expect(guest.update(guest.arguments) == "accepted")
            try reset(guest)
        }
    }

    @Test("a kernel that is replaced is not what a running VM is reset to")
    func replaced() throws {
        let (guest, kernel, directory) = try guest()
        withExtendedLifetime(directory) {}
        let other = directory.file("other")
        try Data("no kernel at all, and too short for one".utf8).write(to: URL(fileURLWithPath: other))
        guard rename(other, kernel) == 0 else { throw TestError("cannot rename") }
        try reset(guest)
    }
}
