import BatonRuntime
import Foundation
import ProcessSupport

extension Harness {
    static let identityRows = [
        Row("ram", "every page of every RAM block is as it was") { harness in
            let machine = try harness.machine()
            _ = try machine.stop()
            var summary = ""
            for way in try harness.ways() {
                let before = try RAMSnapshot(machine)
                try machine.go(way)
                try before.expectEqual(to: try RAMSnapshot(machine))
                summary = before.summary
                try machine.execute("cont")
                try machine.expectLooksFine()
                _ = try machine.stop()
            }
            return summary
        },
        Row("registers", "every register of every hart is as it was, and the guest finds its own") { harness in
            var options = Machine.Options()
            options.harts = 2
            let machine = try harness.machine(options)
            _ = try machine.stop()
            for way in try harness.ways() {
                let before = try machine.registers()
                try require(before.contains("CPU#1"), "info registers -a shows one hart only")
                let count = try machine.count()
                try machine.go(way)
                let after = try machine.registers()
                let different = zip(before.split(separator: "\n"), after.split(separator: "\n")).first { $0 != $1 }
                if let (old, new) = different { throw Failure("\(way.text): '\(old)' became '\(new)'") }
                try require(before.count == after.count, "info registers shows another number of registers")
                // The monitor does not show all of them; the guest looks after the others.
                try machine.execute("cont")
                try machine.expectProgress(past: count)
                try machine.expectLooksFine()
                _ = try machine.stop()
            }
            return "2 harts"
        },
        Row(
            "devices",
            "a second checkpoint has the state of every device that the first had, and the guest finds its own",
            .saves
        ) {
            harness in
            var options = Machine.Options()
            options.harts = 2
            let machine = try harness.machine(options)
            _ = try machine.stop()
            var seen = 0
            for way in try harness.ways() where way.savesToFile {
                try machine.go(way)
                let second = machine.directory.file("second")
                try machine.save(to: second)
                seen = try expectSameDevices(
                    machine.checkpoint, second, lasting: harness.configuration.machine.lasting)
                try machine.execute("cont")
                try machine.expectLooksFine()
                _ = try machine.stop()
            }
            return "\(seen) sections"
        },
        Row("pid", "the VMM keeps its PID", .executes, .samePID) { harness in
            let machine = try harness.machine()
            let pid = machine.process.pid
            for way in try harness.ways() where way.executes {
                try machine.go(way)
                let now = try machine.expectOneProcess()
                try require(now == pid && machine.process.isRunning, "the PID was \(pid) and is \(now)")
            }
            return "\(pid)"
        },
        Row("pidfile", "the PID file names the VMM that has the guest, and is locked by it") { harness in
            let machine = try harness.machine()
            for way in try harness.ways() {
                try machine.go(way)
                _ = try machine.expectOneProcess()
                let fd = open(machine.pidFile, O_RDWR | O_CLOEXEC)
                guard fd >= 0 else { throw Failure.system("open \(machine.pidFile)") }
                defer { close(fd) }
                try require(lockf(fd, F_TEST, 0) != 0, "\(way.text): the PID file is not locked")
            }
            try machine.quit()
            try require(access(machine.pidFile, F_OK) != 0, "after quit the PID file is still there")
            return "true and locked after each way, gone after quit"
        },
        Row("repeated", "many updates in a row leave no descriptor, no thread, no memory and no process behind") {
            harness in
            let machine = try harness.machine()
            let way = try harness.anyWay()
            let rounds = way == .newProcess ? 5 : harness.configuration.repetitions
            let descriptors = try machine.descriptors()
            var early: (kilobytes: Int, threads: Int)?
            for round in 1...rounds {
                let before = try machine.count()
                try machine.go(way)
                let after = try machine.count()
                try require(after >= before, "update \(round): the guest had counted to \(before) and is at \(after)")
                if round == 5 { early = try machine.memoryAndThreads() }
            }
            try machine.expectDescriptors(descriptors)
            let late = try machine.memoryAndThreads()
            if let early, way != .newProcess {
                try require(late.threads == early.threads, "threads: \(early.threads) became \(late.threads)")
                try require(
                    late.kilobytes <= early.kilobytes + 512, "memory: \(early.kilobytes) KiB became \(late.kilobytes)")
            }
            try machine.expectProgress(past: try machine.count())
            _ = try machine.expectOneProcess()
            return "\(rounds) updates, \(descriptors.values.reduce(0, +)) descriptors, \(late.kilobytes) KiB, "
                + "\(late.threads) thread(s)"
        },
    ]

    /// Compares what two checkpoints have of devices and harts.
    /// - Returns: how many sections those are.
    private static func expectSameDevices(
        _ first: String, _ second: String, lasting: (String, ArraySlice<UInt8>) -> [UInt8]
    ) throws -> Int {
        // What else there is says when and how it was saved.
        let others: Set = ["global", "clock", "ram", "ram-contents"]
        let (old, new) = (try SectionContainer(file: first), try SectionContainer(file: second))
        let names = old.sections.map(\.name).filter { !others.contains($0) }
        let now = new.sections.map(\.name).filter { !others.contains($0) }
        try require(names == now, "the sections were \(names) and are \(now)")
        for name in names {
            guard let a = old.section(name), let b = new.section(name) else { continue }
            if a.payload == b.payload && a.version == b.version { continue }
            let fields = try old.reader(a).dump.map { ($0.name, lasting($0.name, $0.payload)) }
            let others = try new.reader(b).dump.map { ($0.name, lasting($0.name, $0.payload)) }
            let changed = others.first { field in !fields.contains { $0 == field } }
            guard let changed else {
                try require(
                    a.version == b.version && fields.count == others.count, "section '\(name)' changed its fields")
                continue
            }
            throw Failure("section '\(name)' changed, the first field '\(changed.0)'")
        }
        return names.count
    }
}

extension Machine {
    /// The registers of every hart as the monitor shows them. The pending
    /// interrupts are not compared: a timer may come due meanwhile.
    func registers() throws -> String {
        let text = try humanCommand("info registers -a")
        return text.split(separator: "\n").filter { !$0.hasPrefix(" mip ") }.joined(separator: "\n")
    }

    /// The VMM's own memory, without the guest's, and its threads.
    package func memoryAndThreads() throws -> (kilobytes: Int, threads: Int) {
        let process = "/proc/\(try statedPID())"
        let status = try String(contentsOfFile: "\(process)/status", encoding: .utf8)
        func number(_ key: String) -> Int {
            let line = status.split(separator: "\n").first { $0.hasPrefix(key) } ?? ""
            return Int(line.drop { !$0.isNumber }.prefix { $0.isNumber }) ?? -1
        }
        // KVM has a thread of the kernel's there, from when a CPU first runs.
        let threads = try FileManager.default.contentsOfDirectory(atPath: "\(process)/task").filter { thread in
            let name = try? String(contentsOfFile: "\(process)/task/\(thread)/comm", encoding: .utf8)
            return name?.hasPrefix("kvm-") == false
        }
        return (number("RssAnon:"), threads.count)
    }
}
