import ProcessSupport

extension Harness {
    static let roundTripRows = [
        roundTrip("running-one-step", .oneStep, paused: false, .executes),
        roundTrip("running-three-steps", .threeSteps, paused: false, .executes),
        roundTrip("running-new-process", .newProcess, paused: false, .survivesHostReboot),
        roundTrip("running-transfer", .transfer, paused: false, .connects),
        roundTrip("paused-one-step", .oneStep, paused: true, .executes),
        roundTrip("paused-three-steps", .threeSteps, paused: true, .executes),
        roundTrip("paused-new-process", .newProcess, paused: true, .survivesHostReboot),
        roundTrip("paused-transfer", .transfer, paused: true, .connects),
        Row("save-taken-back", "cont after cpr-save takes the save back, and another save can follow", .saves) {
            harness in
            let machine = try harness.machine()
            for _ in 0..<2 {
                let before = try machine.count()
                try machine.save()
                try machine.expectStopped(at: try machine.count(), "save-vm")
                try machine.execute("cont")
                try machine.expectProgress(past: before)
            }
            try machine.expectConnections()
            return "saved and taken back twice"
        },
        Row("guest-time", "the guest's clock never goes back, its pending timer fires, and nothing is skipped") {
            harness in
            let machine = try harness.machine()
            for way in try harness.ways() {
                try machine.go(way)
                try machine.expectLooksFine()
            }
            return "clock and timer looked at after each way"
        },
        Row("phases", "preservers are told save, exec, load and commit, each once and in that order", .handsOver) {
            harness in
            var options = Machine.Options()
            options.probe = true
            let machine = try harness.machine(options)
            for way in try harness.ways() where way != .newProcess {
                let before = machine.phasesSeen().count
                try machine.go(way)
                let seen = Array(machine.phasesSeen()[before...]).filter { $0 != "register" && $0 != "survey" }
                try require(seen == ["save", "exec", "load", "commit"], "\(way.text) the phases were \(seen)")
            }
            return "save exec load commit"
        },
        Row("pause-report", "CPR_UPDATED and query-cpr tell the pause by phases, and count the updates", .executes) {
            harness in
            let machine = try harness.machine()
            var pauses: [Int] = []
            for round in 1...3 {
                let start = ContinuousClock.now
                try machine.go(.oneStep)
                let event = try machine.qmp.waitForEvent("CPR_UPDATED", by: harness.configuration.deadline)
                let elapsed = start.duration(to: .now).components
                let limit = Int(elapsed.seconds * 1_000_000 + elapsed.attoseconds / 1_000_000_000_000)
                let report = try machine.query("query-cpr")
                let times = report["last-update"] as? [String: Int] ?? [:]
                try require(times == event as? [String: Int], "query-cpr says \(times), and the event \(event)")
                let pause = times["pause-us"] ?? -1
                // The others are of the time in which the guest ran.
                let names = ["stop", "drain", "save", "wait-load", "load", "resume"]
                let parts = names.reduce(0) { $0 + (times["\($1)-us"] ?? 0) }
                try require((1...limit).contains(pause), "a pause of \(pause) us in an update that took \(limit) us")
                try require(abs(pause - parts) <= 20, "the phases make \(parts) us, and the pause is \(pause) us")
                try require(
                    report["generation"] as? Int == round, "generation is not \(round): \(report["generation"] ?? "")")
                pauses.append(pause)
            }
            return "pauses of \(pauses.map(String.init).joined(separator: ", ")) us"
        },
    ]

    private static func roundTrip(_ name: String, _ way: Way, paused: Bool, _ promise: Promise) -> Row {
        let subject =
            paused
            ? "a paused guest goes over \(way.text), stays paused, and then goes on"
            : "a running guest goes over \(way.text) and goes on in order"
        return Row(name, subject, promise) { harness in
            let machine = try harness.machine()
            for _ in 0..<2 {
                if paused { try machine.execute("stop") }
                let before = try machine.count()
                try machine.go(way)
                if paused {
                    try machine.expectStopped(at: before, "paused")
                    try machine.execute("cont")
                }
                let after = try machine.count()
                try require(after >= before, "the guest had counted to \(before) and is at \(after)")
                try machine.expectProgress(past: max(before, after))
                try machine.expectLooksFine()
            }
            try machine.expectConnections()
            return "twice, counted to \(try machine.count())"
        }
    }
}
