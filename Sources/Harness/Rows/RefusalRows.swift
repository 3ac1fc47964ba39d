import Foundation
import ProcessSupport

/// Refusals: each says why, and leaves the guest as it was.
extension Harness {
    static let refusalRows = [
        Row("refuses-disabled-mode", "a mode that is not enabled is refused before the guest stops") { harness in
            var options = Machine.Options()
            options.enables = false
            options.preservers = false
            let machine = try harness.machine(options)
            return try machine.expectRefusals(stopping: false) {
                [try machine.saveRefusal(), try machine.update()]
            }
        },
        Row("refuses-unknown-mode", "a mode that nobody knows is refused before the guest stops") { harness in
            let machine = try harness.machine()
            return try machine.expectRefusals(stopping: false) {
                [try machine.refusal("cpr-save", ["filename": machine.checkpoint, "mode": "no-such-mode"])]
            }
        },
        Row("refuses-exec-without-save", "cpr-exec without cpr-save is refused", .executes) { harness in
            let machine = try harness.machine()
            return try machine.expectRefusals(stopping: false) {
                [try machine.refusal("cpr-exec", ["argv": machine.arguments])]
            }
        },
        Row("refuses-empty-command", "an empty command to execute is refused", .executes) { harness in
            let machine = try harness.machine()
            return try machine.expectRefusals(stopping: false) {
                [try machine.refusal("cpr-update", ["argv": [String](), "mode": harness.configuration.mode])]
            }
        },
        Row("refuses-load-while-running", "cpr-load is refused while the guest runs") { harness in
            let machine = try harness.machine()
            return try machine.expectRefusals(stopping: false) { [try machine.loadRefusal(machine.checkpoint)] }
        },
        Row(
            "refuses-volatile-ram",
            "RAM that ends with the process is refused before the guest stops, or carried over whole"
        ) {
            harness in
            var options = Machine.Options()
            options.volatileMemory = true
            let machine = try harness.machine(options)
            let way = try harness.anyWay()
            if way == .transfer {
                return try machine.expectRefusals(stopping: false) { [try machine.transfer()] }
            }
            if way == .newProcess {
                _ = try machine.stop()
                let before = try RAMSnapshot(machine)
                try machine.go(way)
                try before.expectEqual(to: try RAMSnapshot(machine))
                try machine.execute("cont")
                try machine.expectProgress(past: try machine.count())
                return "carried over: \(before.summary)"
            }
            return try machine.expectRefusals(stopping: false) { [try machine.saveRefusal(), try machine.update()] }
        },
        Row(
            "refuses-unwritable-file",
            "a checkpoint that cannot be written leaves the guest running and no file behind",
            .saves
        ) {
            harness in
            let machine = try harness.machine()
            let place = machine.directory.file("place")
            try FileManager.default.createDirectory(atPath: place + "/in", withIntermediateDirectories: true)
            let files = try FileManager.default.contentsOfDirectory(atPath: machine.directory.path).sorted()
            let text = try machine.expectRefusals(stopping: true) {
                try ["/nonexistent-directory/checkpoint", place, "/proc/checkpoint", ""].map {
                    try machine.saveRefusal(to: $0)
                }
            }
            let left = try FileManager.default.contentsOfDirectory(atPath: machine.directory.path).sorted()
            try require(left == files, "left behind: \(left.filter { !files.contains($0) })")
            return text
        },
        Row(
            "refuses-bad-checkpoints",
            "cpr-load refuses every bad checkpoint, starts no other guest, changes nothing, and then takes the good one",
            .saves
        ) {
            harness in
            var texts: [String] = []
            for way in try harness.ways() where way.savesToFile {
                let machine = try harness.machine()
                try machine.save()
                let stopped = try machine.count()
                if way == .threeSteps {
                    try machine.exec()
                } else {
                    try machine.quit()
                    try machine.startAnew()
                }
                texts = try machine.expectBadCheckpointsRefused()
                try machine.load()
                try require(try machine.count() >= stopped, "the guest went back")
                try machine.expectProgress(past: stopped)
                try machine.expectConnections()
            }
            return "\(texts.count) kinds; \(texts.last ?? "")"
        },
    ]
}

extension Machine {
    func saveRefusal(to path: String? = nil) throws -> String? {
        try refusal("cpr-save", ["filename": path ?? checkpoint, "mode": configuration.mode])
    }
    func loadRefusal(_ path: String) throws -> String? {
        try refusal("cpr-load", ["filename": path, "mode": configuration.mode])
    }

    /// Each attempt must be refused, and the guest run on where it was.
    /// - Parameter stopping: whether the guest may have been stopped for it.
    /// - Returns: what the first was told.
    func expectRefusals(stopping: Bool, _ attempts: () throws -> [String?]) throws -> String {
        let count = try self.count()
        _ = try status()
        qmp.discardEvents()
        let answers = try attempts()
        for (index, answer) in answers.enumerated() where answer == nil {
            throw Failure("attempt \(index + 1) of \(answers.count) was not refused")
        }
        try expectProgress(
            past: count,
            before: {
                let stops = qmp.events.count { $0["event"] as? String == "STOP" }
                try require(stopping || stops == 0, "the guest was stopped before the refusal")
            })
        try expectConnections()
        return answers.first.flatMap { $0 } ?? ""
    }

    /// In a VMM that waits for `cpr-load`.
    /// - Returns: what it said.
    func expectBadCheckpointsRefused() throws -> [String] {
        let status = try self.status()
        let good = try Data(contentsOf: URL(fileURLWithPath: checkpoint))
        var texts: [String] = []
        for tampering in Tampering.allCases {
            let path = try directory.write("bad-\(tampering.rawValue)", good)
            try tampering.apply(toFile: path)
            guard let text = try loadRefusal(path) else {
                throw Failure("a checkpoint that is '\(tampering.rawValue)' was taken")
            }
            texts.append(text)
        }
        for path in [directory.file("not-there"), directory.path, "/dev/null", arguments[0]] {
            guard let text = try loadRefusal(path) else { throw Failure("\(path) was taken for a checkpoint") }
            texts.append(text)
        }
        try expectNoOtherGuest()
        let now = try self.status()
        try require(now == status, "the run state was '\(status)' and is '\(now)'")
        return texts
    }

    /// In a VMM that has refused what it was to load: a new guest would work on the disks and the memory of that one.
    func expectNoOtherGuest() throws {
        for command in ["cont", "system_reset"] {
            guard let text = try refusal(command, [:]) else { throw Failure("\(command) was not refused") }
            try require(text == "the VM waits for cpr-load", "\(command) was refused with: \(text)")
        }
    }
}
