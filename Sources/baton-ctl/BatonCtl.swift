import ArgumentParser
import BatonRuntime
import Foundation

/// The operator's side tool.
@main
struct BatonCtl: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "baton-ctl", abstract: "Looks after VMs that run under baton.",
        subcommands: [
            Console.self, HostUpdate.self, Inspect.self, List.self, NewModule.self, Save.self, Shutdown.self, Top.self,
            Update.self,
        ])
}

/// A command whose errors are told as the VMM tells its own.
protocol ReportingCommand: ParsableCommand {
    func execute() throws
}

extension ReportingCommand {
    func run() throws {
        do {
            try execute()
            // What was printed may be nowhere yet.
            guard fflush(nil) == 0 else { throw VMMError.system("Could not write to standard output") }
        } catch {
            guard let text = Complaint.text(error) else { throw error }
            Complaint.print(text)
            throw ExitCode.failure
        }
    }
}

/// What goes to standard error. It may quote a file, a guest or a VMM, which must not control the terminal.
enum Complaint {
    /// What a VMM, or the way to it, has to say against something; nil for other errors.
    static func text(_ error: any Error) -> String? {
        switch error {
        case let error as VMMError: error.description
        case let error as MonitorConnection.Closed: error.error.description
        case let error as MonitorConnection.Late: error.error.description
        default: nil
        }
    }

    static func print(_ text: String) {
        let text = TerminalText.escaped(text, keepingLines: true)
        FileHandle.standardError.write(Data("baton-ctl: \(text)\n".utf8))
    }
}
