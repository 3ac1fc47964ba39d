import Foundation
import TestSupport
import Testing

/// `-metrics`: Prometheus' text format by HTTP.
@Suite("Metrics", .enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"))
struct MetricsTests {
    let directory: TemporaryDirectory
    private var socket: String { directory.file("metrics") }

    init() throws { directory = try TemporaryDirectory() }

    private func guest(_ more: [String] = []) throws -> CountingGuest {
        try CountingGuest(
            extra: ["-cpr-enable", "restart", "-name", "a \"b\\c", "-metrics", "unix:\(directory.file("metrics"))"]
                + more)
    }

    /// What is answered, to its last byte.
    private func ask(_ request: String) throws -> (head: String, body: String) {
        let client = try StreamClient(socket: socket)
        try client.send(request)
        let head = try client.expect("\r\n\r\n")
        let length = try #require(
            head.components(separatedBy: "\r\n").first { $0.hasPrefix("Content-Length: ") }
                .flatMap { Int($0.dropFirst("Content-Length: ".count)) })
        try eventually("\(length) bytes") {
            client.poll()
            return client.received.count >= length
        }
        return (head, String(decoding: client.received, as: UTF8.self))
    }

    private func scrape() throws -> [String: Double] {
        let answer = try ask("GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        #expect(answer.head.hasPrefix("HTTP/1.1 200 OK\r\n"))
        #expect(answer.head.contains("Content-Type: text/plain; version=0.0.4"))
        var values: [String: Double] = [:]
        var families: Set<String> = []
        for line in answer.body.split(separator: "\n") {
            if line.hasPrefix("# HELP ") {
                // Each family once.
                #expect(families.insert(String(line.split(separator: " ")[2])).inserted, "\(line)")
                continue
            }
            if line.hasPrefix("#") { continue }
            let space = try #require(line.lastIndex(of: " "))
            let name = String(line[..<space])
            #expect(families.contains(String(name.prefix { $0 != "{" })), "\(line)")
            values[name] = try #require(Double(line[line.index(after: space)...]), "\(line)")
        }
        return values
    }

    @Test("Figures are served, over an update and after one that fails, and are what they say")
    func figures() throws {
        let guest = try guest()
        defer { _ = try? guest.qmp.execute("quit") }
        let first = try scrape()
        #expect(first["baton_run_state{state=\"running\"}"] == 1)
        #expect(first["baton_memory_bytes"] == Double(CountingGuest.memorySize))
        #expect(first["baton_updates_total"] == 0 && first["baton_cpus"] == 1)
        #expect(first.keys.contains { $0.hasPrefix("baton_info{") && $0.contains("name=\"a \\\"b\\\\c\"") })
        #expect(first["process_resident_memory_bytes"] ?? 0 > 1e6)
        let instructions = "baton_cpu_instructions_total{cpu=\"0\"}"
        try guest.waitForProgress(past: guest.count + 1000)
        #expect(try scrape()[instructions] ?? 0 > first[instructions] ?? 1e30)

        try guest.qmp.execute("cpr-update", ["argv": guest.arguments])
        try guest.waitForProgress(past: guest.count)
        let second = try scrape()
        #expect(second["baton_updates_total"] == 1 && second["baton_last_update_success"] == 1)
        let pause = try #require(second["baton_update_seconds{phase=\"pause\"}"])
        #expect(pause > 0 && pause < 10)

        #expect(guest.update(["false"]).contains("taken back"))
        let third = try scrape()
        #expect(third["baton_updates_total"] == 1 && third["baton_last_update_success"] == 0)
        try guest.qmp.execute("stop")
        #expect(try scrape()["baton_run_state{state=\"paused\"}"] == 1)
        let monitor = try #require(try guest.qmp.execute("query-metrics") as? [[String: Any]])
        #expect(monitor.contains { $0["name"] as? String == "baton_run_state" })
    }

    @Test("Whatever a client says or does not say, the next one is answered")
    func clients() throws {
        let guest = try guest()
        defer { _ = try? guest.qmp.execute("quit") }
        #expect(try ask("GET /other HTTP/1.1\r\n\r\n").head.hasPrefix("HTTP/1.1 404 "))
        #expect(try ask("POST /metrics HTTP/1.1\r\n\r\n").head.hasPrefix("HTTP/1.1 405 "))
        #expect(try ask("nonsense\r\n\r\n").head.hasPrefix("HTTP/1.1 400 "))
        #expect(try ask("HEAD / HTTP/1.0\n\n").head.hasPrefix("HTTP/1.1 200 "))
        let long = try StreamClient(socket: socket)
        for _ in 0..<10 { _ = long.send(Array(repeating: UInt8(ascii: "x"), count: 1000)[...]) }
        try long.expect("HTTP/1.1 431 ")
        // One that says nothing is disconnected after five seconds.
        let silent = try StreamClient(socket: socket)
        #expect(try scrape()["baton_cpus"] == 1)
        try eventually("the end of the silent client's connection") {
            silent.poll()
            return silent.isClosed
        }
    }

    @Test("Queues and disks are counted")
    func devices() throws {
        let disk = try directory.writeSparse("disk", size: 1 << 20)
        let guest = try guest([
            "-drive", "file=\(disk),format=raw,if=none,id=hd", "-device", "virtio-blk-device,drive=hd",
        ])
        defer { _ = try? guest.qmp.execute("quit") }
        let values = try scrape()
        #expect(values["baton_block_requests_total{disk=\"hd\",operation=\"read\"}"] == 0)
        #expect(values.keys.contains { $0.hasPrefix("baton_virtio_requests_total{") && $0.contains("virtio-blk") })
        let stats = try #require(try guest.qmp.execute("query-blockstats") as? [[String: Any]])
        #expect(stats.count == 1 && stats[0]["device"] as? String == "hd")
        #expect((stats[0]["stats"] as? [String: Any])?["failed_wr_operations"] as? Int == 0)
    }
}
