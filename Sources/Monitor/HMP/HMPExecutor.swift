import BatonRuntime

/// Carries out lines of the human monitor, typed or through
/// `human-monitor-command`.
enum HMPExecutor {
    /// Short names, as in QEMU.
    static let aliases = ["c": "cont", "s": "stop", "q": "quit", "h": "help", "?": "help"]

    /// - Returns: what is to be printed: each line ends in a newline.
    static func execute(_ line: String, commands: CommandRegistry) -> String {
        let (first, rest) = split(line)
        guard !first.isEmpty else { return "" }
        let name = aliases[first] ?? first
        do throws(VMMError) {
            switch name {
            case "help": return try help(rest, commands)
            case "info": return try info(rest, commands)
            default:
                // A format may follow the name without a blank: `xp/4x`.
                if let slash = first.firstIndex(of: "/"), let command = commands.hmp[String(first[..<slash])] {
                    return try command.handler("\(first[slash...]) \(rest)")
                }
                guard let command = commands.hmp[name] else {
                    return "unknown command: '\(first)'\n"
                }
                return try command.handler(rest)
            }
        } catch {
            return "Error: \(error.description)\n"
        }
    }

    private static func info(_ line: String, _ commands: CommandRegistry) throws(VMMError) -> String {
        let (topic, rest) = split(line)
        guard !topic.isEmpty else { return list(commands, info: true) }
        guard let command = commands.hmp["info \(topic)"] else { return "unknown command: 'info \(topic)'\n" }
        return try command.handler(rest)
    }

    private static func help(_ line: String, _ commands: CommandRegistry) throws(VMMError) -> String {
        let (first, rest) = split(line)
        if first == "info" {
            guard !rest.isEmpty else { return list(commands, info: true) }
        } else if first.isEmpty {
            return list(commands, info: false)
        }
        let name = first == "info" ? "info \(split(rest).first)" : aliases[first] ?? first
        if name == "help" { return describe("help|?", "[cmd]", "show the help") }
        guard let command = commands.hmp[name] else { return "unknown command: '\(line)'\n" }
        return describe(command.name, command.parameters, command.help)
    }

    private static func list(_ commands: CommandRegistry, info: Bool) -> String {
        var lines = commands.hmp.values
            .filter { $0.name.hasPrefix("info ") == info }
            .map { describe(names(of: $0.name), $0.parameters, $0.help) }
        if !info {
            lines.append(describe("help|?", "[cmd]", "show the help"))
            lines.append(describe("info", "[subcommand]", "show various information about the system state"))
        }
        return lines.sorted().joined()
    }

    private static func names(of name: String) -> String {
        ([name] + aliases.filter { $0.value == name }.keys.sorted()).joined(separator: "|")
    }

    private static func describe(_ name: String, _ parameters: String, _ help: String) -> String {
        "\(name)\(parameters.isEmpty ? "" : " " + parameters) -- \(help)\n"
    }

    /// The first word of a line, and the rest without blanks around it.
    static func split(_ line: String) -> (first: String, rest: String) {
        func isBlank(_ character: Character) -> Bool { character == " " || character == "\t" }
        let trimmed = line.drop(while: isBlank)
        let first = trimmed.prefix { !isBlank($0) }
        var rest = trimmed.dropFirst(first.count).drop(while: isBlank)
        while let last = rest.last, isBlank(last) { rest = rest.dropLast() }
        return (String(first), String(rest))
    }
}
