import ArgumentParser
import Foundation
import Harness
import ProcessSupport

/// `baton-harness --mode NAME`: the suite.
struct Run: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Puts a mode through the suite; exit status 0 only when no row failed.")

    @Option(help: "The mode, as -cpr-enable names it.")
    var mode: String

    @Option(help: "The accelerator: \(HarnessMachine.all.map(\.accelerator).joined(separator: " or ")).")
    var accel = HarnessMachine.tcg.accelerator

    @Option(help: ArgumentHelp("A module that every VMM loads; may be given again.", valueName: "path"))
    var module: [String] = []

    @Option(help: ArgumentHelp("Test this preserver too; may be given again.", valueName: "name"))
    var preserver: [String] = []

    @Option(help: ArgumentHelp("Guest RAM of this -object type. (default: a shared file)", valueName: "type"))
    var memoryBackend: String?

    @Option(help: ArgumentHelp("The VMM. (default: the baton beside this command)", valueName: "path"))
    var baton: String?

    @Option(help: ArgumentHelp("Only this row; may be given again.", valueName: "row"))
    var only: [String] = []

    @Option(help: ArgumentHelp("What is due at once may take that long.", valueName: "seconds"))
    var timeout: Double = 20

    @Flag(help: "List the rows.")
    var list = false

    @Flag(help: "Print JSON, one object a row.")
    var json = false

    @Argument(parsing: .postTerminator, help: "More arguments for every VMM, such as a preserver's devices.")
    var arguments: [String] = []

    func run() throws {
        let tool = URL(fileURLWithPath: "/proc/self/exe").resolvingSymlinksInPath()
        let program = baton ?? tool.deletingLastPathComponent().appendingPathComponent("baton").path
        guard FileManager.default.isExecutableFile(atPath: program) else {
            throw ValidationError("there is no executable '\(program)'; name the VMM with --baton")
        }
        guard let machine = HarnessMachine.all.first(where: { $0.accelerator == accel }) else {
            throw ValidationError("there is no accelerator '\(accel)'")
        }
        var configuration = HarnessConfiguration(
            mode: mode, baton: absolute(program), tool: tool.path, machine: machine)
        configuration.modules = module.map(absolute)
        configuration.preservers = preserver
        configuration.arguments = arguments
        configuration.memoryBackend = memoryBackend
        configuration.timeout = timeout
        let named = configuration.modules.map { URL(fileURLWithPath: $0).lastPathComponent }
        for name in preserver where !named.contains(where: { $0.hasSuffix("preserver-\(name).so") }) {
            configuration.arguments += ["-module", try configuration.findModule("preserver-\(name)")]
        }
        let all = Harness.rows(for: configuration)
        for name in only where !all.contains(where: { $0.name == name }) {
            throw ValidationError("there is no row '\(name)'; --list lists them")
        }
        let rows = all.filter { only.isEmpty || only.contains($0.name) }
        if list { return rows.forEach { print(Table.line($0.name, $0.subject)) } }

        if let obstacle = machine.obstacle { throw Failure(obstacle) }
        let harness = try Harness(configuration)
        var failures = 0
        for row in rows {
            let verdict = harness.run(row)
            if case .failed = verdict { failures += 1 }
            print(json ? try Table.json(row, verdict) : Table.line(row.name, verdict.word, row.subject, verdict.detail))
            fflush(stdout)
        }
        if !json {
            print(failures == 0 ? "\(rows.count) rows, none failed" : "\(rows.count) rows, \(failures) failed")
        }
        if failures > 0 { throw ExitCode(1) }
    }

    private func absolute(_ path: String) -> String { URL(fileURLWithPath: path).standardizedFileURL.path }
}

/// The lines of the table.
private enum Table {
    private static let widths = [32, 14]

    static func line(_ cells: String...) -> String {
        var text = ""
        for (index, cell) in cells.enumerated() where !cell.isEmpty {
            if index == cells.count - 1 && index > 1 {
                text += ": " + cell.replacingOccurrences(of: "\n", with: " ")
            } else {
                let width = index < widths.count && index < cells.count - 1 ? widths[index] : 0
                text += cell.padding(
                    toLength: max(width, cell.count + (width > 0 ? 1 : 0)), withPad: " ", startingAt: 0)
            }
        }
        return text
    }

    static func json(_ row: Row, _ verdict: Verdict) throws -> String {
        let object = ["row": row.name, "check": row.subject, "result": verdict.word, "detail": verdict.detail]
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        return String(decoding: try encoder.encode(object), as: UTF8.self)
    }
}
