import BatonRuntime
import Foundation

/// The update of many VMs, some at a time: stops at the first failure, unless told otherwise.
final class UpdateOfAll: @unchecked Sendable {
    private enum Outcome {
        case waiting
        /// By the number of its step.
        case running(Int)
        case current
        case done(UpdateOfOne.Result)
        case failed(String)
    }

    private let machines: [Machine]
    private let options: Update
    private let lock = NSLock()
    /// By machine, as what follows.
    private var outcomes: [Outcome]
    private var versions: [String?]
    private var next = 0
    private var hasFailed = false
    private let display: ProgressDisplay

    init(machines: [Machine], options: Update) {
        self.machines = machines
        self.options = options
        outcomes = Array(repeating: .waiting, count: machines.count)
        versions = Array(repeating: nil, count: machines.count)
        display = ProgressDisplay(names: machines.map(\.name), steps: options.check ? 1 : UpdateOfOne.steps.count)
    }

    /// - Returns: whether an update has failed.
    func carryOut() -> Bool {
        let group = DispatchGroup()
        for _ in 0..<min(options.jobs, machines.count) {
            group.enter()
            Thread.detachNewThread { [self] in
                while let index = take() { carryOut(index) }
                group.leave()
            }
        }
        group.wait()
        return hasFailed
    }

    private func locked<Value>(_ body: () -> Value) -> Value {
        lock.lock()
        defer { lock.unlock() }
        return body()
    }

    /// The next one to update; nil when there is none, or there has been a failure.
    private func take() -> Int? {
        locked {
            guard next < machines.count, options.keepGoing || !hasFailed else { return nil }
            next += 1
            return next - 1
        }
    }

    private func set(_ index: Int, _ outcome: Outcome) {
        locked {
            outcomes[index] = outcome
            switch outcome {
            case .running(let step): display.show(index, step, UpdateOfOne.steps[step])
            case .done: display.finish(index, "done")
            case .current: display.finish(index, "up to date")
            case .failed:
                hasFailed = true
                display.finish(index, "FAILED")
            case .waiting: break
            }
        }
    }

    private func carryOut(_ index: Int) {
        do {
            let status = try MachineStatus(try machines[index].connect(milliseconds: options.timeoutMs))
            locked { versions[index] = status.version }
            if options.outdatedOnly, status.isOutdated == false { return set(index, .current) }
            let update = UpdateOfOne(machine: machines[index], options: options) { [self] name in
                if let step = UpdateOfOne.steps.firstIndex(of: name) { set(index, .running(step)) }
            }
            set(index, .done(try update.carryOut()))
        } catch {
            set(index, .failed(Complaint.text(error) ?? "\(error)"))
        }
    }

    // MARK: What became of it

    var failures: [String] {
        zip(machines, outcomes).compactMap { machine, outcome in
            guard case .failed(let text) = outcome else { return nil }
            return "\(machine.name): \(text)"
        }
    }

    var table: Table {
        var table = Table([
            .init(title: "NAME"), .init(title: "RESULT"), .init(title: "PAUSE", isNumber: true), .init(title: "FROM"),
            .init(title: "TO"),
        ])
        for (index, machine) in machines.enumerated() {
            let from = versions[index] ?? "-"
            switch outcomes[index] {
            case .waiting, .running: table.add([machine.name, "not tried", "-", from, "-"])
            case .current: table.add([machine.name, "up to date", "-", from, "-"])
            case .failed: table.add([machine.name, "FAILED", "-", from, "-"])
            case .done(let result):
                table.add([
                    machine.name, result.wasChecked ? "could be updated" : "updated",
                    result.pause.map(Figure.milliseconds) ?? "-", from, result.version ?? "-",
                ])
            }
        }
        return table
    }

    var json: [JSONObject] {
        zip(machines, outcomes).map { machine, outcome in
            switch outcome {
            case .waiting, .running: ["name": .string(machine.name), "result": "not-tried"]
            case .current: ["name": .string(machine.name), "result": "current"]
            case .failed(let text): ["name": .string(machine.name), "result": "failed", "error": .string(text)]
            case .done(let result): result.json(name: machine.name)
            }
        }
    }
}

/// Bars on the standard error, one a VM; where that is no terminal, a line for each VM that is finished.
final class ProgressDisplay {
    private let names: [String]
    private let steps: Int
    private let isTerminal = isatty(2) == 1
    private var lines: [String]
    private var linesShown = 0
    private static let barWidth = 20

    init(names: [String], steps: Int) {
        self.names = names.map { TerminalText.escaped($0) }
        self.steps = steps
        lines = Array(repeating: "", count: names.count)
    }

    private func label(_ index: Int) -> String {
        let width = names.map(\.count).max() ?? 0
        return names[index] + String(repeating: " ", count: width - names[index].count)
    }

    /// - Parameter step: from 0.
    func show(_ index: Int, _ step: Int, _ text: String) {
        guard isTerminal else { return }
        let full = Self.barWidth * step / steps
        let bar = String(repeating: "#", count: full) + String(repeating: ".", count: Self.barWidth - full)
        draw(index, "\(label(index)) [\(bar)] \(text)")
    }

    func finish(_ index: Int, _ text: String) {
        guard isTerminal else { return write("\(label(index)) \(text)\n") }
        draw(index, "\(label(index)) [\(String(repeating: "#", count: Self.barWidth))] \(text)")
    }

    /// All lines again, in the place of those that were there.
    private func draw(_ index: Int, _ line: String) {
        lines[index] = line
        let begun = lines.filter { !$0.isEmpty }
        let back = linesShown > 0 ? "\u{1b}[\(linesShown)A" : ""
        write(back + begun.map { "\r\u{1b}[K\($0)\n" }.joined())
        linesShown = begun.count
    }

    private func write(_ text: String) { FileHandle.standardError.write(Data(text.utf8)) }
}
