import Foundation
import ProcessSupport

/// `ping -f`, run after run, of which every packet must be answered once.
///
/// Runs of a known number of packets, for ping waits for the answer to the last one only then: one
/// that is interrupted counts it as lost.
final class PingFlood {
    private let address: String
    private let directory: TemporaryDirectory
    private var run: BackgroundProcess?
    private(set) var answered = 0

    private static let packets = 2000

    init(address: String, directory: TemporaryDirectory) {
        self.address = address
        self.directory = directory
    }

    /// Starts the next run if none is under way.
    func keepUp() throws {
        guard run?.isRunning != true else { return }
        try judge()
        run = try BackgroundProcess(
            ["ping", "-f", "-q", "-c", "\(Self.packets)", address], output: directory.file("ping.log"))
    }

    var isRunning: Bool { run?.isRunning == true }

    /// Judges the last run, which has ended.
    func judge() throws {
        guard let run else { return }
        self.run = nil
        let said = run.said
        guard said.contains("\(Self.packets) packets transmitted, \(Self.packets) received, 0% packet loss") else {
            throw Failure("pings were lost, or answered twice: \(said)")
        }
        answered += Self.packets
    }
}
