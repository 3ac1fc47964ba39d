import ArgumentParser
import BatonRuntime
import Foundation

/// `baton-ctl top`: what VMs are busy with.
struct Top: ReportingCommand {
    static let configuration = CommandConfiguration(
        abstract: "Shows what VMs are busy with, again and again.",
        discussion: """
            CPU is the processor time of the VMM and its guest, in percent of one processor; MEMORY is what of its \
            address space is in use. EXITS are those of a guest on KVM to the VMM; REQUESTS those of all virtio devices \
            that the VMM serves itself; READ and WRITE are its disks. All but MEMORY are rates since the last time.
            """)

    @Argument(help: "VMs. (default: all)", completion: MachineDirectory.names)
    var name: [String] = []

    @OptionGroup var choices: MachineChoices

    @Option(help: ArgumentHelp("Seconds from one time to the next.", valueName: "seconds"))
    var interval: Double = 2

    @Option(help: ArgumentHelp("Ends after so many times. (default: never)", valueName: "times"))
    var count: Int?

    @Option(help: "Milliseconds within which a VM must answer.")
    var timeoutMs: Int64 = 2000

    @Flag(help: "Print JSON, one object a VM and time.")
    var json = false

    func validate() throws {
        guard interval >= 0.05, interval <= 86_400 else { throw ValidationError("--interval is from 0.05 to 86400") }
    }

    func execute() throws {
        var before: [String: Sample] = [:]
        var shown = 0
        while count.map({ shown < $0 }) ?? true {
            var now: [String: Sample] = [:]
            var rows: [(machine: Machine, sample: Sample, rates: Rates?)] = []
            for machine in try choices.machines(name) {
                guard let sample = try? Sample(try machine.connect(milliseconds: timeoutMs)) else { continue }
                now[machine.name] = sample
                rows.append((machine, sample, before[machine.name].flatMap { Rates(from: $0, to: sample) }))
            }
            // There are no rates the first time.
            if !before.isEmpty || rows.isEmpty {
                show(rows.sorted { ($0.rates?.cpu ?? 0) > ($1.rates?.cpu ?? 0) })
                shown += 1
            }
            before = now
            if count.map({ shown < $0 }) ?? true { Thread.sleep(forTimeInterval: interval) }
        }
    }

    private func show(_ rows: [(machine: Machine, sample: Sample, rates: Rates?)]) {
        if json {
            for row in rows {
                var object: JSONObject = [
                    "name": .string(row.machine.name), "state": .string(row.sample.state),
                    "memory": .double(row.sample.memory),
                ]
                for (key, value) in row.rates?.named ?? [] { object[key] = .double(value) }
                print(JSON.object(object).text())
            }
            fflush(stdout)
            return
        }
        var table = Table([
            .init(title: "NAME"), .init(title: "STATE"), .init(title: "%CPU", isNumber: true),
            .init(title: "MEMORY", isNumber: true), .init(title: "EXITS/s", isNumber: true),
            .init(title: "REQUESTS/s", isNumber: true), .init(title: "READ/s", isNumber: true),
            .init(title: "WRITE/s", isNumber: true),
        ])
        for (machine, sample, rates) in rows {
            func rate(_ value: Double?, _ form: (Double) -> String) -> String { value.map(form) ?? "-" }
            table.add([
                machine.name, sample.state, rate(rates?.cpu) { Figure.decimal($0, 1) }, Figure.bytes(sample.memory),
                rate(rates?.exits, Figure.count), rate(rates?.requests, Figure.count),
                rate(rates?.read, Figure.bytes), rate(rates?.written, Figure.bytes),
            ])
        }
        // A terminal is filled anew each time; in a file one table follows the other.
        let isTerminal = isatty(1) == 1
        print((isTerminal ? "\u{1b}[H\u{1b}[2J" : "") + table.text, terminator: isTerminal ? "" : "\n")
        fflush(stdout)
    }
}

/// A VM's figures at one time.
private struct Sample {
    let at = EventLoop.now
    var pid: Int64
    var state: String
    var cpu = 0.0, memory = 0.0, exits = 0.0, requests = 0.0, read = 0.0, written = 0.0

    init(_ monitor: MonitorConnection) throws {
        pid = try monitor.execute("query-cpr").objectValue?["pid"]?.intValue ?? 0
        state = try monitor.execute("query-status").objectValue?["status"]?.stringValue ?? "unknown"
        for family in try monitor.execute("query-metrics").arrayValue ?? [] {
            guard let family = family.objectValue, let name = family["name"]?.stringValue else { continue }
            for sample in (family["samples"]?.arrayValue ?? []).compactMap(\.objectValue) {
                add(name, sample)
            }
        }
    }

    private mutating func add(_ name: String, _ sample: JSONObject) {
        let value = sample["value"]?.numberValue ?? 0
        func label(_ name: String) -> String? {
            sample["labels"]?.arrayValue?.compactMap(\.objectValue).first { $0["name"]?.stringValue == name }?["value"]?
                .stringValue
        }
        switch name {
        case "process_cpu_seconds_total": cpu += value
        case "process_resident_memory_bytes": memory += value
        case "baton_cpu_exits_total": exits += value
        case "baton_virtio_requests_total": requests += value
        case "baton_block_bytes_total": if label("operation") == "read" { read += value } else { written += value }
        default: break
        }
    }
}

/// What was done a second between two samples.
private struct Rates {
    /// Percent of a processor.
    var cpu: Double
    var exits: Double, requests: Double, read: Double, written: Double

    /// - Returns: nil where a new VMM has begun to count anew in between.
    init?(from old: Sample, to new: Sample) {
        let seconds = Double(new.at - old.at) / 1e9
        let differences = [
            new.cpu - old.cpu, new.exits - old.exits, new.requests - old.requests, new.read - old.read,
            new.written - old.written,
        ].map { $0 / seconds }
        guard seconds > 0, differences.allSatisfy({ $0 >= 0 }) else { return nil }
        (cpu, exits, requests) = (differences[0] * 100, differences[1], differences[2])
        (read, written) = (differences[3], differences[4])
    }

    var named: [(String, Double)] {
        [
            ("cpu-percent", cpu), ("exits-per-second", exits), ("requests-per-second", requests),
            ("read-bytes-per-second", read), ("write-bytes-per-second", written),
        ]
    }
}

extension JSON {
    /// Of any number.
    var numberValue: Double? {
        switch self {
        case .int(let value): Double(value)
        case .uint(let value): Double(value)
        case .double(let value): value
        default: nil
        }
    }
}
