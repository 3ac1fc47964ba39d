import Foundation
import TestSupport
import Testing

/// `preserver-fd`, the preserver in C: descriptors of other programs over real
/// updates.
@Suite("Descriptor store", .enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"))
struct DescriptorStoreTests {
    private let extra = ["-cpr-enable", "restart,reboot", "-module", Products.module("preserver-fd")]

    /// A pipe whose writing end goes to the store.
    private func store(_ name: String, _ guest: CountingGuest) throws -> Int32 {
        var ends: [Int32] = [-1, -1]
        try #require(pipe(&ends) == 0)
        try guest.qmp.execute("getfd", ["fdname": "given"], passing: ends[1])
        close(ends[1])
        try guest.qmp.execute("fd-store-add", ["name": name, "fd": "given"])
        return ends[0]
    }

    private func entry(_ name: String, _ guest: CountingGuest) throws -> (number: Int, updates: Int) {
        let entry = try #require(try guest.qmp.execute("query-fd-store-entry", ["name": name]) as? [String: Any])
        return (try #require(entry["number"] as? Int), try #require(entry["updates"] as? Int))
    }

    private func isOpenElsewhere(_ reader: Int32) -> Bool {
        var state = pollfd(fd: reader, events: Int16(POLLIN), revents: 0)
        return poll(&state, 1, 0) == 0
    }

    @Test("A descriptor stays open over updates, and over one that fails")
    func isKept() throws {
        let guest = try CountingGuest(extra: extra)
        let reader = try store("supervisor", guest)
        defer { close(reader) }
        for round in 1...3 {
            try guest.qmp.execute("cpr-update", ["argv": guest.arguments])
            #expect(try entry("supervisor", guest).updates == round)
            #expect(isOpenElsewhere(reader))
        }
        #expect(throws: QMPClient.Refusal.self) {
            try guest.qmp.execute("cpr-update", ["argv": ["/bin/false"], "preflight": false])
        }
        #expect(try entry("supervisor", guest).updates == 3)
        #expect(isOpenElsewhere(reader))
        try guest.qmp.execute("fd-store-remove", ["name": "supervisor"])
        var state = pollfd(fd: reader, events: Int16(POLLIN), revents: 0)
        #expect(poll(&state, 1, 10_000) == 1 && state.revents & Int16(POLLHUP) != 0)
    }

    @Test("What cannot be stored is refused, and stays the monitor's")
    func refusals() throws {
        let guest = try CountingGuest(extra: extra)
        let qmp = guest.qmp
        let reader = try store("a", guest)
        defer { close(reader) }
        let open = try guest.openDescriptors()
        let null = Foundation.open("/dev/null", O_RDONLY | O_CLOEXEC)
        defer { close(null) }
        try qmp.execute("getfd", ["fdname": "given"], passing: null)
        #expect(
            refusal { try qmp.execute("fd-store-add", ["name": "a", "fd": "given"]) }
                == "preserver-fd: the store has a descriptor of that name")
        #expect(
            refusal { try qmp.execute("fd-store-add", ["name": "", "fd": "given"]) }
                == "preserver-fd: 'name' must have 1 to 64 bytes")
        #expect(
            refusal { try qmp.execute("fd-store-add", ["name": "b", "fd": "none"]) }
                == "File descriptor named 'none' has not been found")
        #expect(refusal { try qmp.execute("fd-store-add", ["name": "b"]) } == "Parameter 'fd' is missing")
        #expect(
            refusal { try qmp.execute("fd-store-add", ["name": 1, "fd": "given"]) }
                == "Invalid parameter type for 'name', expected: string")
        #expect(
            refusal { try qmp.execute("fd-store-remove", ["name": "b"]) }
                == "preserver-fd: there is no descriptor 'b' in the store")
        try qmp.execute("closefd", ["fdname": "given"])
        #expect(try guest.openDescriptors() == open)
    }

    @Test("A mode that would lose the descriptors is refused while the guest runs")
    func blocksReboot() throws {
        let guest = try CountingGuest(extra: extra)
        let reader = try store("a", guest)
        defer { close(reader) }
        let save = ["filename": guest.checkpoint, "mode": "reboot"]
        #expect(refusal { try guest.qmp.execute("cpr-save", save) }.contains("descriptors in the store would be lost"))
        #expect(try guest.qmp.status() == "running")
        try guest.qmp.execute("fd-store-remove", ["name": "a"])
        try guest.qmp.execute("cpr-save", save)
        #expect(try guest.qmp.status() == "save-vm")
    }

    @Test("The module's commands are described in the schema")
    func isDescribed() throws {
        let guest = try CountingGuest(extra: extra)
        let schema = try #require(try guest.qmp.execute("query-qmp-schema") as? [[String: Any]])
        func named(_ name: String) -> [String: Any]? { schema.first { $0["name"] as? String == name } }
        let command = try #require(named("query-fd-store-entry"))
        let arguments = named(try #require(command["arg-type"] as? String))?["members"] as? [[String: Any]]
        #expect(arguments?.map { "\($0["name"] ?? "") \($0["type"] ?? "")" } == ["name str"])
        let results = named(try #require(command["ret-type"] as? String))?["members"] as? [[String: Any]]
        #expect(results?.map { "\($0["name"] ?? "") \($0["type"] ?? "")" } == ["number int", "updates int"])
    }
}
