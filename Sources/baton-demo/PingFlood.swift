import Foundation
import ProcessSupport

/// Echo requests, run after run of them (`FloodCommand`), of which every one must be answered once.
final class PingFlood {
    private let address: String
    private var run: BackgroundProcess?
    private(set) var answered = 0

    private static let packets = 2000

    init(address: String) { self.address = address }

    /// Starts the next run if none is under way.
    func keepUp() throws {
        guard run?.isRunning != true else { return }
        try judge()
        run = try BackgroundProcess(
            ["/proc/\(getpid())/exe", "flood", "--count", "\(Self.packets)", address])
    }

    var isRunning: Bool { run?.isRunning == true }

    /// Judges the last run, which has ended.
    func judge() throws {
        guard let run else { return }
        self.run = nil
        let said = run.said
        guard said.contains("\(Self.packets) sent, \(Self.packets) answered, 0 of them twice") else {
            throw Failure("pings were lost, or answered twice: \(said)")
        }
        answered += Self.packets
    }
}
