import Foundation
import ProcessSupport

/// Puts one mode through the conformance suite.
public final class Harness: Sendable {
    public let configuration: HarnessConfiguration
    /// What the mode states, read from a VM that has it enabled.
    public let promises: [Promise]
    private let allWays: [Way]

    /// How a guest gets from one process to the next.
    enum Way: CaseIterable {
        /// `cpr-update`.
        case oneStep
        /// `cpr-save`, `cpr-exec`, `cpr-load`.
        case threeSteps
        /// `cpr-save`, `quit`, a new start, `cpr-load`.
        case newProcess
        /// `cpr-update` with a channel, to a VMM that has been started and waits.
        case transfer

        /// Whether the new VMM is executed in the old one's process.
        var executes: Bool { self == .oneStep || self == .threeSteps }
        /// Whether a checkpoint is saved to a file, and loaded from there.
        var savesToFile: Bool { self == .threeSteps || self == .newProcess }

        var text: String {
            switch self {
            case .oneStep: "in one step"
            case .threeSteps: "in three steps"
            case .newProcess: "by a new start"
            case .transfer: "to a process that waits"
            }
        }
    }

    /// Starts a VM to ask the mode what it promises.
    /// - Throws: why there is nothing to test.
    public init(_ configuration: HarnessConfiguration) throws {
        ChildProcess.ignoreBrokenPipes()
        self.configuration = configuration
        let machine = try Machine(configuration, Machine.Options(starts: false))
        let report = try machine.query("query-cpr")
        let modes = report["modes"] as? [[String: Any]] ?? []
        guard let mode = modes.first(where: { $0["name"] as? String == configuration.mode }) else {
            throw Failure("query-cpr does not list the mode '\(configuration.mode)' as enabled: \(modes)")
        }
        let stated = Promise.allCases.filter { mode[$0.rawValue] as? Bool == true }
        promises = stated + Promise.implied(by: stated)
        allWays =
            (promises.contains(.executes) ? [.oneStep, .threeSteps] : [])
            + (promises.contains(.connects) ? [.transfer] : [])
            + (promises.contains(.survivesHostReboot) ? [.newProcess] : [])
    }

    /// Every row that applies: those of preservers only when one is named.
    public static func rows(for configuration: HarnessConfiguration) -> [Row] {
        generalRows + roundTripRows + identityRows + connectionRows + refusalRows + preflightRows + failureRows
            + killRows + meanwhileRows + transferRows
            + survivalRows + hostUpdateRows + (configuration.preservers.isEmpty ? [] : preserverRows)
    }

    /// Carries out one row.
    public func run(_ row: Row) -> Verdict {
        guard row.promises.allSatisfy(promises.contains) else { return .notPromised }
        do {
            return .passed(try row.check(self))
        } catch is NoWay {
            return .notPromised
        } catch {
            return .failed("\(error)")
        }
    }

    func machine(_ options: Machine.Options = Machine.Options()) throws -> Machine {
        let machine = try Machine(configuration, options)
        machine.keepsConnections = promises.contains(.keepsConnections)
        return machine
    }

    /// The mode takes a guest to another kernel of the host only, which no row can start.
    private struct NoWay: Error {}

    /// The ways in which the mode can take a guest to another process.
    func ways() throws -> [Way] {
        if allWays.isEmpty, promises.contains(.survivesHostUpdate) { throw NoWay() }
        guard !allWays.isEmpty else {
            throw Failure(
                "the mode promises neither to execute its successor nor to survive it, so it takes no guest anywhere")
        }
        return allWays
    }

    /// The way by which rows go that are not about the ways: the first.
    func anyWay() throws -> Way { try ways()[0] }

    static let generalRows = [
        Row("promises", "query-cpr lists the mode and what it promises") { harness in
            if !harness.promises.contains(.survivesHostUpdate) { _ = try harness.anyWay() }
            return harness.promises.map(\.rawValue).joined(separator: " ")
        }
    ]
}
