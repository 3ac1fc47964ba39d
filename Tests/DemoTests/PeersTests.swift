import TestSupport
import Testing

/// What of the peers this machine lacks, as the demonstration says it; empty if nothing is.
private let missingPeers: String = {
    guard let check = try? ChildProcess([demo, "peers", "--check"]) else { return "baton-demo does not run" }
    let status = try? check.waitForExit()
    return status == .status(0) ? "" : "baton-demo peers: \(check.errors)"
}()

/// A guest whose disk, shared directory and network are others', over twenty updates: no error in
/// the guest's log, no block, file or ping lost or doubled, no new connection, one PID.
@Suite(.serialized)
struct PeersTests {
    @Test(
        .enabled(if: missingPeers.isEmpty, Comment(rawValue: missingPeers)),
        .enabled(if: debianIsAvailable, missingDebian))
    func debianAndItsPeersNoticeNothing() throws {
        let output = try ChildProcess.run(
            [demo, "peers", "--updates", "20", "--harts", "2", "--cache", cache, "--boot-timeout", "600"],
            by: .seconds(900))
        let lines = output.split(separator: "\n").filter { $0.hasPrefix("update ") }
        #expect(lines.count == 20)
        for line in lines { #expect(line.contains("(same)") && line.contains("same connections")) }
        #expect(output.contains("20 updates, nothing lost: "), "\(output)")
    }
}
