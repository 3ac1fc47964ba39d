import Foundation
import ProcessSupport

/// The pause of a guest on KVM in `cpr-update`, by its time-stamp counter, and how soon `stop` stops it, beside QEMU.
struct KVMPauseBenchmark {
    let machines: KVMMachines
    let repetitions: Int
    let directory: TemporaryDirectory

    private static let sizes = [("128M", 128 << 20), ("1G", 1 << 30)]

    func run() throws {
        print("KVM, the longest gap that the guest sees by its time-stamp counter (\(repetitions) times each):")
        for (size, bytes) in Self.sizes { try compare(size, bytes) }
        print("KVM, QMP 'stop' to the guest's last step (\(repetitions) times each):")
        let size = KVMMachines.memory
        for runner in machines.runners where runner != .bareLoop {
            let samples = try measure(runner, size.name, size.bytes) { probe, _ in
                try (0..<repetitions).map { _ in try probe.stopLatency() }
            }
            row(runner == .qemu ? "QEMU \(version)" : runner.title, Summary(samples))
        }
    }

    private var version: String { machines.qemu?.version ?? "" }

    /// QEMU's time-stamp counter stands still with the guest, so that its pause is seen from outside only.
    private func compare(_ size: String, _ bytes: Int) throws {
        var outside = Summary([]), idle = Summary([]), own: [(exec: Double, hands: Double)] = []
        let gaps = try measure(.baton, size, bytes) { probe, arguments in
            let messages = [try QMPConnection.encode("cpr-update", ["argv": arguments])]
            outside = Summary(try (0..<min(repetitions, 100)).map { _ in try probe.pause(messages) })
            var seconds = 0.0
            let gaps = try (0..<repetitions).map { _ in
                let begin = Clock.now
                let gap = try probe.gap(messages)
                seconds = max(seconds, Clock.now - begin)
                own.append(try probe.ownFigures())
                return gap
            }
            idle = Summary(try (0..<repetitions).map { _ in try probe.gap(during: seconds) })
            return gaps
        }
        row("\(size), baton cpr-update", Summary(gaps))
        row("\(size), no update, in the same time", idle)
        print(
            String(
                format: "    %.2f from outside; as the VMM has it, %.2f for the exec and %.2f for the change of hands",
                outside.median, Summary(own.map(\.exec)).median, Summary(own.map(\.hands)).median))
        guard machines.qemu != nil else { return }
        do {
            let other = try cprExec(size, bytes)
            row("\(size), QEMU \(version) cpr-exec, from outside", other)
            print("    baton / QEMU, from outside: " + String(format: "%.3f", outside.median / other.median))
        } catch {
            print("  \(size), QEMU \(version) cpr-exec: skipped, as it does not work here: \(error)")
        }
    }

    private func cprExec(_ size: String, _ bytes: Int) throws -> Summary {
        let state = "file:" + directory.file("kvm-qemu.state")
        return Summary(
            try measure(.qemu, size, bytes) { probe, arguments in
                let message = try QMPConnection.encode("migrate", ["uri": state])
                return try (0..<min(repetitions, 100)).map { _ in
                    try probe.command(
                        "migrate-set-parameters",
                        ["mode": "cpr-exec", "cpr-exec-command": arguments + ["-incoming", state]])
                    let pause = try probe.pause([message], replaces: true)
                    try probe.reconnect()
                    return pause
                }
            })
    }

    private func measure(
        _ runner: KVMMachines.Runner, _ size: String, _ bytes: Int,
        _ body: (_ probe: PauseProbe, _ arguments: [String]) throws -> [Double]
    ) throws -> [Double] {
        let page = try machines.page(bytes: bytes), socket = directory.file("kvm.sock")
        var arguments = machines.arguments(runner, page: page, size: size)
        arguments += ["-qmp", "unix:\(socket),server=on,wait=off"]
        if runner == .baton { arguments += ["-cpr-enable", "restart"] }
        let probe = try PauseProbe(arguments, page: page, socketPath: socket, log: directory.file("kvm.log"))
        page.calibrate()
        let samples = try body(probe, arguments)
        try probe.command("quit")
        return samples
    }

    private func row(_ name: String, _ summary: Summary) {
        print("  \(name.padding(toLength: 40, withPad: " ", startingAt: 0))\(summary)")
    }
}
