import Foundation
import TestSupport
import Testing

/// Whatever a VMM does or leaves, whoever waits for it goes on at the deadline, and says what it waited for.
@Suite("Waits for a VMM")
struct WaitTests {
    /// A QMP client, and the server's end of its connection.
    private func connection() throws -> (client: QMPClient, server: Int32) {
        var ends: [Int32] = [-1, -1]
        let type = Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue)
        guard socketpair(AF_UNIX, type, 0, &ends) == 0 else { throw Failure.system("socketpair") }
        return (QMPClient(adopting: ends[0]), ends[1])
    }

    /// Sends the same event for as long as there is a client.
    private func sendEvents(to client: Int32) {
        Thread.detachNewThread {
            let event = Array("{\"event\": \"STOP\", \"data\": {}}\n".utf8)
            while send(client, event, event.count, Int32(MSG_NOSIGNAL)) > 0 {}
            close(client)
        }
    }

    private func failure(_ body: () throws -> Void) -> String {
        do { try body() } catch { return "\(error)" }
        return "nothing failed"
    }

    @Test("for an event, from a server that says nothing")
    func silence() throws {
        let (client, server) = try connection()
        defer { close(server) }
        let text = failure { try client.waitForEvent("DEVICE_DELETED", by: .seconds(0.2)) }
        #expect(text.contains("the event DEVICE_DELETED"), "\(text)")
    }

    @Test("for an event or an answer, from a server that sends other events without end")
    func flood() throws {
        let (client, server) = try connection()
        sendEvents(to: server)
        var text = failure { try client.waitForEvent("DEVICE_DELETED", by: .seconds(0.2)) }
        #expect(text.contains("gave up waiting for: the event DEVICE_DELETED; the last of "), "\(text)")
        #expect(text.contains(#"events: ["STOP", "STOP", "STOP"]"#), "\(text)")
        client.discardEvents()
        text = failure { try client.execute("query-status", by: .seconds(0.2)) }
        #expect(text.contains("gave up waiting for: the answer to 'query-status'"), "\(text)")
    }

    @Test("for a command to go to a server that reads nothing")
    func deaf() throws {
        let (client, server) = try connection()
        defer { close(server) }
        let argument = String(repeating: "x", count: 4 << 20)
        let text = failure { try client.execute("human-monitor-command", ["line": argument], by: .seconds(0.2)) }
        #expect(text.contains("'human-monitor-command': gave up waiting for: the QMP server reads "), "\(text)")
    }

    @Test("for a connection to a server that has as many as it takes")
    func full() throws {
        let directory = try TemporaryDirectory()
        let path = directory.file("socket")
        let server = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        defer { close(server) }
        guard QMPClient.withAddress(path, { bind(server, $0, $1) }) == 0, listen(server, 0) == 0 else {
            throw Failure.system("listen on \(path)")
        }
        let first = try StreamClient(socket: path, patience: 5)
        let text = failure { _ = try StreamClient(socket: path, patience: 0.2) }
        #expect(text == "gave up waiting for: a server on \(path)", "\(text)")
        withExtendedLifetime(first) {}
    }
}
