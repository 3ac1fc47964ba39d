import Foundation
import ProcessSupport

/// What the harness is to look at, and with what.
public struct HarnessConfiguration: Sendable {
    /// The mode, as `-cpr-enable` names it.
    public var mode: String
    /// What every VM is.
    public var machine: HarnessMachine
    /// Files that `-module` loads.
    public var modules: [String] = []
    /// Names of preservers, from `modules` or found beside the VMM.
    public var preservers: [String] = []
    /// The VMM's executable.
    public var baton: String
    /// The `baton-harness` command, which the harness uses as a bad successor.
    public var tool: String
    /// The `-object` type of guest RAM; by default a shared file.
    public var memoryBackend: String?
    /// More arguments for every VMM, such as the devices of a preserver.
    public var arguments: [String] = []
    /// Added to the environment of every VMM.
    public var environment: [String: String] = [:]
    /// How long anything may take that is due at once, in seconds.
    public var timeout: Double = 20
    /// How many updates in a row must leave nothing behind.
    public var repetitions = 50

    public init(mode: String, baton: String, tool: String, machine: HarnessMachine = .tcg) {
        self.mode = mode
        self.machine = machine
        self.baton = baton
        self.tool = tool
    }

    package var deadline: Deadline { .seconds(timeout) }
    /// For a VMM's start, which may have to come from a disk that is busy.
    var startDeadline: Deadline { .seconds(max(timeout, 60)) }

    /// A module by its name, beside the VMM or where it is installed.
    public func findModule(_ name: String) throws -> String {
        let directory = URL(fileURLWithPath: baton).resolvingSymlinksInPath().deletingLastPathComponent().path
        let places = [directory, "\(directory)/../lib/baton/modules"].map { "\($0)/lib\(name).so" }
        guard let found = places.first(where: { FileManager.default.fileExists(atPath: $0) }) else {
            throw Failure("the module \(name) is not there (looked for \(places.joined(separator: ", ")))")
        }
        return found
    }
}
