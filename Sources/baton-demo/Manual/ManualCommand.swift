import ArgumentParser
import Foundation
import ProcessSupport

/// `baton-demo manual`: makes the manual pages of their sources and the programs' own help texts.
struct ManualCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "manual",
        abstract: "Makes manual pages and shell completions.",
        discussion: """
            A page's source is mdoc(7) text in which '@OPTIONS@' or '@COMMANDS@' on a line of its own stands for what \
            the program of that name says of its options, '@MODES@' for the CPR modes that baton finds, '@VERSION@' for \
            its version, and '@DATE@' for the day of SOURCE_DATE_EPOCH, or today.
            """)

    @Option(help: "Where the programs are.")
    var programs = ".build/release"

    @Option(help: "Where the pages' sources are: NAME.SECTION.in.")
    var sources = "Sources/Packaging/man"

    @Option(help: "The directory to write to; made if missing.")
    var output = ".build/manual"

    func run() throws {
        let files = FileManager.default
        try files.createDirectory(atPath: output, withIntermediateDirectories: true)
        let baton = OptionHelp(text: try ChildProcess.run(["\(programs)/baton", "-help"]))
        let version = try ChildProcess.run(["\(programs)/baton", "-version"])
        for name in try files.contentsOfDirectory(atPath: sources).sorted() where name.hasSuffix(".in") {
            let page = String(name.dropLast(".in".count))
            let program = page.split(separator: ".").first.map(String.init) ?? page
            var text = try String(contentsOfFile: "\(sources)/\(name)", encoding: .utf8)
            text = text.replacingOccurrences(of: "@VERSION@", with: Self.number(version))
            text = text.replacingOccurrences(of: "@DATE@", with: Self.date)
            if text.contains("\n@MODES@\n") {
                // Without the files of the modules, which are the build tree's.
                let modes = try ChildProcess.run(["\(programs)/baton", "-cpr-enable", "help"])
                    .replacingOccurrences(of: " \\(/[^)]*\\)", with: "", options: .regularExpression)
                text = text.replacingOccurrences(of: "@MODES@\n", with: Mdoc.list(of: modes))
            }
            if text.contains("\n@OPTIONS@\n"), program == "baton" {
                text = text.replacingOccurrences(of: "@OPTIONS@\n", with: baton.mdoc)
            } else if text.contains("\n@OPTIONS@\n") || text.contains("\n@COMMANDS@\n") {
                let help = try CommandHelp(of: "\(programs)/\(program)")
                text = text.replacingOccurrences(of: "@OPTIONS@\n", with: help.optionsOfDefault)
                text = text.replacingOccurrences(of: "@COMMANDS@\n", with: help.commands)
            }
            try text.write(toFile: "\(output)/\(page)", atomically: true, encoding: .utf8)
            print("\(output)/\(page)")
        }
        // What the tools' own library makes for them; baton has a script that asks it.
        for program in ["baton-ctl", "baton-harness"] {
            for (shell, file) in [("bash", "\(program).bash"), ("zsh", "_\(program)"), ("fish", "\(program).fish")] {
                var script = try ChildProcess.run(["\(programs)/\(program)", "--generate-completion-script", shell])
                // It is read by a shell, and not run.
                if script.hasPrefix("#!") { script = String(script.drop { $0 != "\n" }.dropFirst()) }
                try script.write(toFile: "\(output)/\(file)", atomically: true, encoding: .utf8)
                print("\(output)/\(file)")
            }
        }
    }

    /// The number of `Baton emulator version baton-0.9.0+g0123456789ab`.
    private static func number(_ text: String) -> String {
        let last = text.split(whereSeparator: { $0 == " " || $0 == "\n" }).last ?? ""
        return String(last.split(separator: "+").first ?? "").replacingOccurrences(of: "baton-", with: "")
    }

    /// As mdoc wants it: `November 28, 2026`.
    private static var date: String {
        let epoch = ProcessInfo.processInfo.environment["SOURCE_DATE_EPOCH"].flatMap { TimeInterval($0) }
        let formatter = DateFormatter()
        formatter.locale = Locale(identifier: "en_US_POSIX")
        formatter.timeZone = TimeZone(identifier: "UTC")
        formatter.dateFormat = "MMMM d, yyyy"
        return formatter.string(from: epoch.map { Date(timeIntervalSince1970: $0) } ?? Date())
    }
}
