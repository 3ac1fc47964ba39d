import Foundation
import ProcessSupport

/// The guest's pause in an update, with memories of several sizes and many preserved descriptors, chardevs and
/// cards, and beside QEMU's cpr-exec and cpr-transfer.
///
/// The guest measures it: the longest gap between two of its steps, by its time counter, while this process sleeps.
/// This process looks, too, from outside into its RAM, in other updates. Of QEMU only that is of use: its time counter
/// stands still with the guest.
struct PauseBenchmark {
    let vmm: String
    /// nil: not to be had.
    let qemu: QEMUInstallation?
    let repetitions: Int
    /// Only rows with one of these in their names are measured; all if there is none.
    let rows: [String]
    let directory: TemporaryDirectory

    private static let sizes = [("128M", 128 << 20), ("1G", 1 << 30), ("16G", 16 << 30)]
    /// Of guests that use all of it.
    private static let usedSizes = [("1G", 1 << 30), ("4G", 4 << 30)]
    private static let descriptors = 1000
    private static let deviceCounts = [1, 10, 100]
    private static let worksMeasured = 5
    /// The default of `downtime-ms`.
    private static let downtime = 300

    func run() throws {
        // For the thousand descriptors, here and in the VMMs.
        var limit = rlimit()
        if getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0 {
            limit.rlim_cur = limit.rlim_max
            setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
        }
        let image = directory.file("pause-counter.bin")
        try GuestBuilder().build(.counter, to: image)
        print("the longest gap that the guest sees in an update (\(repetitions) times each):")
        var base = 0.0
        for (size, bytes) in Self.sizes {
            let memory = try CountingMemory(size: size, bytes: bytes, image: image)
            let median = try compare(size, memory, steps: true)
            if base == 0 { base = median }
        }
        for (size, bytes) in Self.usedSizes {
            guard let memory = try CountingMemory(size: size, used: bytes, image: image) else {
                print("  \(size) in use: skipped, as this machine has not as much to spare")
                continue
            }
            _ = try compare("\(size) in use", memory, steps: false)
        }
        try many(base, image: image)
        try limited(base, image: image)
        try failures(image: image)
        try work(image: image)
    }

    // MARK: Rows

    /// Beside QEMU, if that is there.
    /// - Returns: the median of `cpr-update`.
    private func compare(_ name: String, _ memory: CountingMemory, steps: Bool) throws -> Double {
        let update = try measureRow("\(name), baton cpr-update") { try baton(memory, Self.update) }
        _ = try measureRow("\(name), the same without a trial") { try baton(memory, Self.updateWithoutTrial) }
        if steps { _ = try measureRow("\(name), baton save, exec, load") { try baton(memory, Self.threeSteps) } }
        let transfer = try measureRow("\(name), baton transfer") { try self.transfer(memory) }
        let median = update?.guest.median ?? 0
        guard let qemu else { return median }
        if let exec = try measureRow(
            "\(name), QEMU \(qemu.version) cpr-exec, from outside", { try cprExec(qemu, memory) })
        {
            ratio("baton cpr-update / QEMU cpr-exec", update?.outside, exec)
        }
        if let other = try measureRow(
            "\(name), QEMU \(qemu.version) cpr-transfer, from outside", { try cprTransfer(qemu, memory) })
        {
            ratio("baton transfer / QEMU cpr-transfer", transfer?.outside, other)
        }
        return median
    }

    /// Of what there are many.
    private func many(_ base: Double, image: String) throws {
        let memory = try CountingMemory(size: Self.sizes[0].0, bytes: Self.sizes[0].1, image: image)
        _ = try measureRow("128M, cpr-update, \(Self.descriptors) descriptors", base: base) {
            try baton(memory, Self.update, descriptors: Self.descriptors)
        }
        let files = (0..<Self.descriptors).flatMap { ["-chardev", "file,id=c\($0),path=\(directory.file("c\($0)"))"] }
        _ = try measureRow("128M, cpr-update, \(Self.descriptors) file chardevs", base: base) {
            try baton(memory, Self.update, extra: files)
        }
        _ = try measureRow("128M, cpr-update, in no sandbox", base: base) {
            try baton(memory, Self.update, extra: ["-sandbox", "off"])
        }
        for count in Self.deviceCounts {
            _ = try measureRow("128M, cpr-update, \(count) network cards", base: base) {
                try baton(memory, Self.update, extra: networkCards(count))
            }
        }
    }

    /// Where VMM, guest and update together get one processor's time, as much as the guest alone would use.
    private func limited(_ base: Double, image: String) throws {
        let name = "128M, cpr-update, cpu.max of one CPU"
        guard isWanted(name) else { return }
        let limit: ProcessorLimit
        do { limit = try ProcessorLimit(processors: 1) } catch { return print("  \(name): skipped: \(error)") }
        let memory = try CountingMemory(size: Self.sizes[0].0, bytes: Self.sizes[0].1, image: image)
        _ = try measureRow(name, base: base) {
            try baton(memory, Self.update, limit: limit)
        }
    }

    /// Updates that come to nothing: the guest goes on in the old VMM.
    private func failures(image: String) throws {
        let memory = try CountingMemory(size: Self.sizes[0].0, bytes: Self.sizes[0].1, image: image)
        let stopped = "128M, it stops with the guest for \(Self.downtime) ms"
        for (name, command) in [
            ("refuses", ["/bin/sh", "-c", "exit 3"]), ("crashes", ["/bin/sh", "-c", "kill -SEGV $$"]),
            ("hangs", ["/bin/sleep", "1000"]),
        ] {
            _ = try measureRow("128M, the new VMM \(name)") {
                Summary(try measure(memory) { probe, _ in try refusedGaps(probe, command, ["timeout-ms": 200]) })
            }
        }
        guard isWanted(stopped) else { return }
        guard Tool.find("strace") != nil else { return print("  \(stopped): skipped: needs strace") }
        _ = try measureRow(stopped) { try stoppedGaps(memory) }
    }

    /// Gaps where the new VMM stops when it has the guest, until the old one takes that back.
    private func stoppedGaps(_ memory: CountingMemory) throws -> Summary {
        let trace = directory.file("trace")
        // With -D the tracer is no parent of the new VMM, which has the VM's PID.
        let tracer = ["strace", "-D", "-q", "-o", trace, "-e", "trace=write"]
        _ = try measure(memory) { probe, arguments in
            try probe.command("cpr-update", ["argv": tracer + arguments, "preflight": false])
            return []
        }
        // The new VMM says so when it loads the state of a guest that stands still (see WatchMessages).
        let writes = try String(contentsOfFile: trace, encoding: .utf8).split(separator: "\n")
        guard let call = writes.firstIndex(where: { $0.contains("L\", 9)") }) else {
            throw Failure("the new VMM has not said that it loads the state: \(writes)")
        }
        let injection = ["-e", "inject=write:signal=STOP:when=\(call + 1)"]
        return Summary(
            try measure(memory) { probe, arguments in
                try refusedGaps(
                    probe, tracer + injection + arguments,
                    ["preflight": false, "timeout-ms": 20_000, "downtime-ms": Self.downtime])
            })
    }

    private func refusedGaps(_ probe: PauseProbe, _ argv: [String], _ limits: [String: Any]) throws -> [Double] {
        let message = try QMPConnection.encode("cpr-update", limits.merging(["argv": argv]) { $1 })
        return try (0..<min(repetitions, 100)).map { _ in try probe.gap([message], isRefused: true) }
    }

    private func work(image: String) throws {
        var isFirst = true
        func row(_ name: String, _ memory: CountingMemory, _ limit: ProcessorLimit? = nil) throws {
            guard isWanted("\(name), cpr-update") else { return }
            if isFirst {
                print("the guest's work in the first second after a restart, as a part of that in the second before:")
                isFirst = false
            }
            let samples = try measure(memory, limit: limit) { probe, arguments in
                let messages = try Self.update(arguments, checkpoint: "")
                return try (0..<Self.worksMeasured).map { _ in try probe.work(messages) }
            }.sorted()
            let text = String(
                format: "%7.1f %%   (%.1f to %.1f)", samples[samples.count / 2], samples[0], samples.last ?? 0)
            print("  \("\(name), cpr-update".padding(toLength: 40, withPad: " ", startingAt: 0))\(text)")
        }
        try row("128M", CountingMemory(size: Self.sizes[0].0, bytes: Self.sizes[0].1, image: image))
        for (size, bytes) in Self.usedSizes {
            if let memory = try CountingMemory(size: size, used: bytes, image: image) {
                try row("\(size) in use", memory)
            }
        }
        guard let limit = try? ProcessorLimit(processors: 1) else { return }
        try row(
            "128M, cpu.max of one CPU", CountingMemory(size: Self.sizes[0].0, bytes: Self.sizes[0].1, image: image),
            limit)
        for (size, bytes) in Self.usedSizes {
            if let memory = try CountingMemory(size: size, used: bytes, image: image) {
                try row("\(size) in use, cpu.max of one CPU", memory, limit)
            }
        }
    }

    /// Cards whose socket to their network is preserved.
    private func networkCards(_ count: Int) -> [String] {
        (0..<count).flatMap { number in
            let address = "\(String(1 + number / 8, radix: 16)).\(number % 8),multifunction=on"
            return [
                "-netdev",
                "dgram,id=n\(number),local.type=unix,local.path=\(directory.file("net\(number)")),"
                    + "remote.type=unix,remote.path=\(directory.file("peer\(number)"))",
                "-device", "virtio-net-pci,netdev=n\(number),addr=\(address)",
            ]
        }
    }

    /// Measures a row and prints it, unless it is left out.
    private func measureRow<Figures: RowFigures>(
        _ name: String, base: Double? = nil, _ measure: () throws -> Figures
    ) throws -> Figures? {
        guard isWanted(name) else { return nil }
        let figures = try measure()
        let more = base.map { String(format: "  %+.2f ms", figures.summary.median - $0) } ?? ""
        print("  \(name.padding(toLength: 40, withPad: " ", startingAt: 0))\(figures.summary)\(more)")
        if let details = figures.details { print("    \(details)") }
        return figures
    }

    private func isWanted(_ name: String) -> Bool { rows.isEmpty || rows.contains { name.contains($0) } }

    private func ratio(_ name: String, _ own: Summary?, _ other: Summary) {
        guard let own else { return }
        print("    \(name): " + String(format: "%.3f", own.median / other.median))
    }

    /// An update, several times: the longest gap, and the medians of the pause from outside and of both as the VMM
    /// has them, in ms.
    private struct Pauses: RowFigures {
        let guest: Summary
        let outside: Summary
        let exec: Double
        let hands: Double

        init(_ gaps: [Double], outside: [Double], own: [(exec: Double, hands: Double)]) {
            guest = Summary(gaps)
            self.outside = Summary(outside)
            exec = Summary(own.map(\.exec)).median
            hands = Summary(own.map(\.hands)).median
        }

        var summary: Summary { guest }
        var details: String? {
            String(
                format: "%.2f from outside; as the VMM has it, %.2f for the exec and %.2f for the change of hands",
                outside.median, exec, hands)
        }
    }

    // MARK: Baton

    private typealias Steps = (_ arguments: [String], _ checkpoint: String) throws -> [Data]

    private static func update(_ arguments: [String], checkpoint: String) throws -> [Data] {
        [try QMPConnection.encode("cpr-update", ["argv": arguments])]
    }

    private static func updateWithoutTrial(_ arguments: [String], checkpoint: String) throws -> [Data] {
        [try QMPConnection.encode("cpr-update", ["argv": arguments, "preflight": false])]
    }

    private static func threeSteps(_ arguments: [String], checkpoint: String) throws -> [Data] {
        [
            try QMPConnection.encode("cpr-save", ["filename": checkpoint, "mode": "restart"]),
            try QMPConnection.encode("cpr-exec", ["argv": arguments + ["-S"]]),
            try QMPConnection.encode("cpr-load", ["filename": checkpoint, "mode": "restart"]),
        ]
    }

    private var outsideMeasured: Int { min(max(repetitions, 1), 100) }

    private func baton(
        _ memory: CountingMemory, _ steps: Steps, descriptors: Int = 0, extra: [String] = [],
        limit: ProcessorLimit? = nil
    ) throws -> Pauses {
        var own: [(exec: Double, hands: Double)] = [], outside: [Double] = []
        let gaps = try measure(memory, extra: extra, limit: limit) { probe, arguments in
            for number in 0..<descriptors {
                let fd = open("/dev/null", O_RDONLY | O_CLOEXEC)
                defer { close(fd) }
                try probe.pass(fd, as: "bench\(number)")
            }
            let messages = try steps(arguments, directory.file("checkpoint"))
            outside = try (0..<outsideMeasured).map { _ in try probe.pause(messages) }
            return try (0..<max(repetitions, 1)).map { _ in
                let gap = try probe.gap(messages)
                own.append(try probe.ownFigures())
                return gap
            }
        }
        return Pauses(gaps, outside: outside, own: own)
    }

    /// To a process that is there already, each time to a new one.
    private func transfer(_ memory: CountingMemory) throws -> Pauses {
        let channel = directory.file("channel")
        let message = try QMPConnection.encode("cpr-update", ["mode": "transfer", "channel": channel])
        var own: [(exec: Double, hands: Double)] = [], outside: [Double] = []
        let gaps = try measure(memory, mode: "transfer") { probe, arguments in
            func once(_ measure: () throws -> Double) throws -> Double {
                let next = try VMMProcess(
                    arguments + ["-incoming", Self.channel("cpr", channel)], log: directory.file("next.log"))
                try probe.wait("\(channel)") { try ListeningSocket.exists(at: channel) }
                let result = try measure()
                try probe.goesOn(in: next)
                return result
            }
            outside = try (0..<outsideMeasured).map { _ in try once { try probe.pause([message]) } }
            return try (0..<max(repetitions, 1)).map { _ in
                let gap = try once { try probe.gap([message]) }
                own.append(try probe.ownFigures())
                return gap
            }
        }
        return Pauses(gaps, outside: outside, own: own)
    }

    private func measure(
        _ memory: CountingMemory, mode: String = "restart", extra: [String] = [], limit: ProcessorLimit? = nil,
        _ body: (_ probe: PauseProbe, _ arguments: [String]) throws -> [Double]
    ) throws -> [Double] {
        let socket = directory.file("pause.sock")
        let arguments =
            [vmm, "-machine", "virt,memory-backend=ram", "-cpr-enable", mode] + memory.arguments(socket: socket)
            // For checkpoints and channels.
            + ["-sandbox", "paths=\(directory.path)"] + extra
        let probe = try PauseProbe(arguments, page: memory.page, socketPath: socket, log: directory.file("vmm.log"))
        try limit?.add(probe.process.pid)
        let samples = try body(probe, arguments)
        try probe.command("quit")
        // A control group is removed when it is empty.
        if limit != nil { try probe.wait("the VMM's end") { !probe.process.isRunning } }
        return samples
    }

    // MARK: QEMU

    private static func channel(_ type: String, _ path: String) -> String {
        "{\"channel-type\": \"\(type)\", \"addr\": {\"transport\": \"socket\", \"type\": \"unix\", "
            + "\"path\": \"\(path)\"}}"
    }

    private func arguments(_ qemu: QEMUInstallation, _ memory: CountingMemory, socket: String) -> [String] {
        qemu.command + ["-machine", "virt,memory-backend=ram,aux-ram-share=on"] + memory.arguments(socket: socket)
    }

    private func cprExec(_ qemu: QEMUInstallation, _ memory: CountingMemory) throws -> Summary {
        let socket = directory.file("qemu.sock"), state = "file:" + directory.file("qemu.state")
        let arguments = self.arguments(qemu, memory, socket: socket)
        let probe = try PauseProbe(arguments, page: memory.page, socketPath: socket, log: directory.file("qemu.log"))
        let message = try QMPConnection.encode("migrate", ["uri": state])
        let samples = try (0..<max(repetitions, 1)).map { _ in
            try probe.command(
                "migrate-set-parameters", ["mode": "cpr-exec", "cpr-exec-command": arguments + ["-incoming", state]])
            let pause = try probe.pause([message], replaces: true)
            try probe.reconnect()
            return pause
        }
        try probe.command("quit")
        return Summary(samples)
    }

    private func cprTransfer(_ qemu: QEMUInstallation, _ memory: CountingMemory) throws -> Summary {
        let cpr = directory.file("cpr"), main = directory.file("main")
        func socket(_ number: Int) -> String { directory.file("qemu\(number % 2).sock") }
        let probe = try PauseProbe(
            arguments(qemu, memory, socket: socket(0)), page: memory.page, socketPath: socket(0),
            log: directory.file("qemu.log"))
        let samples = try (0..<min(max(repetitions, 1), 200)).map { number in
            let next = try VMMProcess(
                arguments(qemu, memory, socket: socket(number + 1)) + [
                    "-incoming", Self.channel("main", main), "-incoming", Self.channel("cpr", cpr),
                ], log: directory.file("next.log"))
            try probe.wait("\(cpr)") { try ListeningSocket.exists(at: cpr) }
            try probe.command("migrate-set-parameters", ["mode": "cpr-transfer"])
            let channels = [Self.channel("main", main), Self.channel("cpr", cpr)].map {
                (try? JSONSerialization.jsonObject(with: Data($0.utf8))) ?? $0
            }
            let pause = try probe.pause(
                [try QMPConnection.encode("migrate", ["channels": channels])], until: "STOP")
            try probe.command("quit")
            try probe.goesOn(in: next, socketPath: socket(number + 1))
            return pause
        }
        try probe.command("quit")
        return Summary(samples)
    }
}

/// What a row of the benchmark shows.
private protocol RowFigures {
    var summary: Summary { get }
    /// A second line.
    var details: String? { get }
}

extension Summary: RowFigures {
    fileprivate var summary: Summary { self }
    fileprivate var details: String? { nil }
}
