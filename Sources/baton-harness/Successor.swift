import ArgumentParser
import Foundation
import Harness

/// What the harness has a VMM execute in place of the next VMM: it spoils
/// something and then becomes that VMM.
struct Successor: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Spoils the checkpoint that a VMM hands over, and executes the next VMM.", shouldDisplay: false)

    @Option(help: "How: \(Tampering.allCases.map(\.rawValue).joined(separator: ", ")).")
    var checkpoint: Tampering

    @Argument(parsing: .postTerminator)
    var command: [String]

    func run() throws {
        guard let program = command.first else { throw ValidationError("no command to execute") }
        try checkpoint.applyToInheritedCheckpoint()
        let arguments = command.map { strdup($0) } + [nil]
        execv(program, arguments)
        throw ValidationError("\(program): \(String(cString: strerror(errno)))")
    }
}

extension Tampering: ExpressibleByArgument {}
