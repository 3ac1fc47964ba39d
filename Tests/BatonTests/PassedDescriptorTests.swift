import Foundation
import TestSupport
import Testing

/// `getfd` and `closefd`: descriptors that a client passes to the VMM.
@Suite("Passed descriptors", .enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"))
struct PassedDescriptorTests {
    private func entry(_ guest: CountingGuest, _ name: String) throws -> Int32? {
        let report = try guest.qmp.execute("query-cpr") as? [String: Any]
        let fds = report?["fds"] as? [[String: Any]] ?? []
        return (fds.first { $0["name"] as? String == "getfd-\(name)" }?["fd"] as? Int).map { Int32($0) }
    }

    private func identity(_ guest: CountingGuest, _ fd: Int32) throws -> String {
        try FileManager.default.destinationOfSymbolicLink(atPath: "/proc/\(guest.process.pid)/fd/\(fd)")
    }

    /// The guest gets the writing end as "p".
    /// - Returns: the other one.
    private func passPipe(to guest: CountingGuest) throws -> Int32 {
        var ends: [Int32] = [-1, -1]
        try #require(pipe(&ends) == 0)
        defer { close(ends[1]) }
        try guest.qmp.execute("getfd", ["fdname": "p"], passing: ends[1])
        return ends[0]
    }

    @Test("A descriptor stays the VMM's over an update, and ends with closefd")
    func isKept() throws {
        let guest = try CountingGuest()
        let readingEnd = try passPipe(to: guest)
        defer { close(readingEnd) }
        let before = try #require(try entry(guest, "p"))
        let pipe = try identity(guest, before)
        try guest.qmp.execute("cpr-update", ["argv": guest.arguments])
        let after = try #require(try entry(guest, "p"))
        #expect(try identity(guest, after) == pipe)
        // The writing end is open just there: it ends when the VMM closes it.
        var state = pollfd(fd: readingEnd, events: Int16(POLLIN), revents: 0)
        #expect(poll(&state, 1, 0) == 0)
        try guest.qmp.execute("closefd", ["fdname": "p"])
        #expect(poll(&state, 1, 10_000) == 1 && state.revents & Int16(POLLHUP) != 0)
        #expect(try entry(guest, "p") == nil)
    }

    @Test("A name that is given again replaces what it named")
    func isReplaced() throws {
        let guest = try CountingGuest()
        let readingEnd = try passPipe(to: guest)
        defer { close(readingEnd) }
        let null = open("/dev/null", O_RDONLY | O_CLOEXEC)
        defer { close(null) }
        try guest.qmp.execute("getfd", ["fdname": "p"], passing: null)
        var state = pollfd(fd: readingEnd, events: Int16(POLLIN), revents: 0)
        #expect(poll(&state, 1, 10_000) == 1 && state.revents & Int16(POLLHUP) != 0)
        let fd = try #require(try entry(guest, "p"))
        #expect(try identity(guest, fd) == "/dev/null")
    }

    @Test("What is not there or has a bad name is refused, and nothing leaks")
    func refusals() throws {
        let guest = try CountingGuest()
        let open = try guest.openDescriptors()
        #expect(
            refusal { try guest.qmp.execute("getfd", ["fdname": "p"]) } == "No file descriptor supplied via SCM_RIGHTS")
        #expect(refusal { try guest.qmp.execute("closefd", ["fdname": "p"]) } == "File descriptor named 'p' not found")
        let null = Foundation.open("/dev/null", O_RDONLY | O_CLOEXEC)
        defer { close(null) }
        for name in ["", "1p"] {
            let text = refusal { try guest.qmp.execute("getfd", ["fdname": name], passing: null) }
            #expect(text == "Parameter 'fdname' expects a name not starting with a digit")
        }
        #expect(try guest.openDescriptors() == open)
    }
}
