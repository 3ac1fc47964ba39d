import ProcessSupport

/// Machines, and the steps that have been done to them.
package final class SoakRun {
    private let machines: [SoakMachine]
    /// The last one may have failed.
    package private(set) var steps: [SoakStep] = []

    /// Starts the machines.
    package init(_ kinds: [SoakMachine.Kind], _ configuration: SoakMachine.Configuration) throws {
        machines = try kinds.map { kind in
            do { return try SoakMachine(kind, configuration) } catch {
                throw Failure("the machine '\(kind.rawValue)': \(error)")
            }
        }
    }

    /// Starts just the machines that a list of steps names.
    package convenience init(for steps: [SoakStep], _ configuration: SoakMachine.Configuration) throws {
        let kinds = SoakMachine.Kind.allCases.filter { kind in steps.contains { $0.machine == kind } }
        try self.init(kinds, configuration)
    }

    /// What the guests have done, a line each.
    package var summary: [String] { machines.map(\.summary) }

    /// - Throws: `SoakFailure`.
    package func perform(_ step: SoakStep) throws {
        steps.append(step)
        guard let machine = machines.first(where: { $0.kind == step.machine }) else {
            throw SoakFailure(check: "action", text: "there is no machine '\(step.machine.rawValue)'")
        }
        try machine.perform(step)
        for other in machines where other !== machine { try other.drain() }
    }

    package func keepLogs(in directory: String) {
        for machine in machines { machine.keepLogs(in: directory) }
    }
}
