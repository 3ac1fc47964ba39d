import Foundation
import Soak
import TestSupport
import Testing

@Suite("Scripts of a soak")
struct SoakScriptTests {
    /// What is wrong with a script.
    private func refusal(_ text: String) -> String {
        do {
            return "accepted: \(try SoakScript.parse(text))"
        } catch { return "\(error)" }
    }

    @Test("Steps are read as they are written")
    func roundTrip() throws {
        let text = """
            # seed 7

            disk update fault=crashes preflight=off
              harts   kill after=700
            kvm steps then=cancel
            """
        let steps = try SoakScript.parse(text)
        #expect(
            steps == [
                SoakStep(.disk, .update, ["fault": "crashes", "preflight": "off"]),
                SoakStep(.harts, .kill, ["after": "700"]), SoakStep(.kvm, .steps, ["then": "cancel"]),
            ])
        #expect(steps[0]["fault"] == "crashes" && steps[1].number("after") == 700)
        #expect(try SoakScript.parse(SoakScript.text(steps, heading: ["seed 7"])) == steps)
    }

    @Test("All that is drawn can be written and read, and the same seed draws the same")
    func drawn() throws {
        var plan = SoakPlan(seed: 11, machines: SoakMachine.Kind.allCases)
        let steps = (0..<2000).map { _ in plan.next() }
        #expect(try SoakScript.parse(SoakScript.text(steps)) == steps)
        var again = SoakPlan(seed: 11, machines: SoakMachine.Kind.allCases)
        #expect(steps == steps.indices.map { _ in again.next() })
        var other = SoakPlan(seed: 12, machines: SoakMachine.Kind.allCases)
        #expect(steps != steps.indices.map { _ in other.next() })
    }

    @Test("Everything is drawn at some time, but for what loses a guest, and what is not possible")
    func everything() {
        var plan = SoakPlan(seed: 3, machines: SoakMachine.Kind.allCases)
        let steps = (0..<5000).map { _ in plan.next() }
        #expect(Set(steps.map(\.action)) == Set(SoakAction.allCases).subtracting([.lose]))
        #expect(Set(steps.compactMap { $0["fault"] }).isSuperset(of: SuccessorFault.possible.map(\.rawValue)))
        #expect(Set(steps.compactMap { $0["probe"] }) == Set(SoakProbe.allCases.map(\.rawValue)))
        #expect(Set(steps.compactMap { $0["during"] }) == Set(StandstillDeed.allCases.map(\.rawValue)))
        #expect(steps.allSatisfy { $0.action != .fullDisk || $0.machine == .disk })
        #expect(steps.allSatisfy { $0.action != .slowStorage || $0.machine == .served })
        var less = SoakPlan(seed: 3, machines: [.disk], without: [.fullDisk])
        for _ in 0..<1000 {
            let step = less.next()
            #expect(step.machine == .disk && step.action != .fullDisk)
        }
    }

    @Test(
        "What no script may say is an error that names it",
        arguments: [
            ("tower update", "the first word names no machine (harts, disk, served, kvm)"),
            ("disk", "the second word names no action"), ("disk explode", "the second word names no action"),
            ("disk update colour=red", "'colour=red' is no option of update"),
            ("disk update fault", "'fault' is no option of update"),
            ("disk update fault=bad-weather", "'fault' is does-not-exist, ends-at-once"),
            ("disk kill after=soon", "'after' is a number, not 'soon'"), ("harts kill", "after is missing"),
            ("disk plug", "what is missing"), ("served slow-storage during=sleep", "'during' is update, refusal"),
        ])
    func refusals(_ line: String, _ reason: String) {
        #expect(refusal("harts stop\n\(line)\n").contains("'\(line)': \(reason)"), "\(refusal(line))")
    }
}
