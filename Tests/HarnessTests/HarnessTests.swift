import Foundation
import Harness
import TestSupport
import Testing

/// Every row of baton-harness, for our own modes and preserver.
struct HarnessTests {
    private static let restart = Result { try Harness(configuration("restart")) }
    private static let transfer = Result { try Harness(configuration("transfer")) }
    private static let reboot = Result { try Harness(configuration("reboot")) }
    private static let liveUpdate = Result { try Harness(configuration("liveupdate")) }
    private static let preserver = Result { try Harness(preserving("fd")) }

    static func configuration(_ mode: String, _ machine: HarnessMachine = .tcg) -> HarnessConfiguration {
        var configuration = HarnessConfiguration(
            mode: mode, baton: Products.baton, tool: "\(Products.directory)/baton-harness", machine: machine)
        configuration.timeout = 120
        return configuration
    }
    private static func preserving(_ name: String) -> HarnessConfiguration {
        var configuration = configuration("restart")
        configuration.preservers = [name]
        configuration.arguments = ["-module", Products.module("preserver-\(name)")]
        return configuration
    }

    static func rows(_ configuration: HarnessConfiguration) -> [String] { Harness.rows(for: configuration).map(\.name) }

    static func run(_ name: String, _ harness: Harness) throws -> (row: Row, verdict: Verdict) {
        let row = try #require(Harness.rows(for: harness.configuration).first { $0.name == name })
        return (row, harness.run(row))
    }

    /// A row must pass if it is about what the mode promises, and only then be run.
    static func expect(_ name: String, _ harness: Result<Harness, any Error>, _ promises: [Promise]) throws {
        let (row, verdict) = try run(name, try harness.get())
        let isPromised = row.promises.allSatisfy(promises.contains)
        if case .failed(let text) = verdict { Issue.record("\(name): \(text)") }
        #expect((verdict != .notPromised) == isPromised, "\(name): \(verdict)")
    }

    @Test("The restart mode", arguments: rows(configuration("restart")))
    func restart(row: String) throws {
        try Self.expect(row, Self.restart, [.samePID, .keepsConnections, .executes, .handsOver, .saves])
    }

    @Test("The reboot mode", arguments: rows(configuration("reboot")))
    func reboot(row: String) throws { try Self.expect(row, Self.reboot, [.survivesHostReboot, .saves]) }

    @Test("The transfer mode", arguments: rows(configuration("transfer")))
    func transfer(row: String) throws {
        try Self.expect(row, Self.transfer, [.keepsConnections, .connects, .handsOver])
    }

    /// As far as it promises something in one kernel; on a host without the orchestrator its refusals.
    @Test("The liveupdate mode", arguments: rows(configuration("liveupdate")))
    func liveUpdate(row: String) throws {
        let (row, verdict) = try Self.run(row, try Self.liveUpdate.get())
        if case .failed(let text) = verdict { Issue.record("\(row.name): \(text)") }
        if row.promises.contains(.survivesHostUpdate) { #expect(verdict != .notPromised, "\(row.name)") }
        if row.promises.contains(where: { $0 != .survivesHostUpdate }) {
            #expect(verdict == .notPromised, "\(row.name)")
        }
    }

    @Test("A preserver", arguments: rows(preserving("fd")).filter { $0.hasPrefix("preserver-") })
    func preserver(row: String) throws {
        try Self.expect(row, Self.preserver, [.samePID, .keepsConnections, .executes, .handsOver, .saves])
    }
}
