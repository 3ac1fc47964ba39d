import Foundation
import ProcessSupport

/// What a program says of its commands, as its library for arguments tells tools (`--experimental-dump-help`).
struct CommandHelp {
    private struct Dump: Decodable { var command: Command }

    private struct Command: Decodable {
        var commandName: String
        var abstract: String?
        var discussion: String?
        var shouldDisplay: Bool?
        var subcommands: [Command]?
        var arguments: [Argument]?
        var defaultSubcommand: String?
    }

    private struct Argument: Decodable {
        struct Name: Decodable {
            var kind: String
            var name: String
        }
        var kind: String
        var shouldDisplay: Bool
        var isOptional: Bool
        var isRepeating: Bool
        var names: [Name]?
        var valueName: String?
        var defaultValue: String?
        var abstract: String?
        var parsingStrategy: String?
    }

    private let root: Command

    init(of program: String) throws {
        let text = try ChildProcess.run([program, "--experimental-dump-help"])
        root = try JSONDecoder().decode(Dump.self, from: Data(text.utf8)).command
    }

    private var shown: [Command] {
        (root.subcommands ?? []).filter { $0.shouldDisplay != false && $0.commandName != "help" }
    }

    /// A section for each command: how it is called, what it does, its options.
    var commands: String { shown.map { Self.describe($0) }.joined() }

    /// The options of the command that is meant when none is named.
    var optionsOfDefault: String {
        let command = shown.first { $0.commandName == root.defaultSubcommand } ?? shown.first ?? root
        return Self.list(of: command)
    }

    private static func describe(_ command: Command) -> String {
        var text = ".Ss \(Mdoc.word(command.commandName))\n"
        if let abstract = command.abstract { text += Mdoc.text(abstract) }
        if let discussion = command.discussion { text += ".Pp\n" + Mdoc.text(discussion) }
        return text + list(of: command)
    }

    private static func list(of command: Command) -> String {
        let arguments = (command.arguments ?? []).filter { argument in
            argument.shouldDisplay && argument.names?.contains { $0.name == "help" || $0.name == "version" } != true
        }
        guard !arguments.isEmpty else { return "" }
        return ".Bl -tag -width Ds\n" + arguments.map(item).joined() + ".El\n"
    }

    private static func item(_ argument: Argument) -> String {
        var head = ".It "
        let value = argument.valueName ?? "value"
        if let names = argument.names {
            head += names.map { "Fl \(Mdoc.word($0.kind == "long" ? "-\($0.name)" : $0.name))" }.joined(
                separator: " , ")
            if argument.kind == "option" { head += " Ar \(Mdoc.word(value))" }
        } else {
            if argument.parsingStrategy == "postTerminator" { head += "Fl \(Mdoc.word("-")) " }
            head += "Ar \(Mdoc.word(value))"
        }
        var text = argument.abstract ?? ""
        if let value = argument.defaultValue, !text.contains("(default") { text += " (default: \(value))" }
        return head + "\n" + Mdoc.text(text)
    }
}
