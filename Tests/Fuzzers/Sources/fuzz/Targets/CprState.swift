@testable import BatonBase
@testable import BatonCPR
@testable import BatonMachine
import BatonRuntime

/// What a new VMM reads first: the state that the old one leaves it.
extension Target {
    static let cprState = Target(
        name: "cpr-state",
        words: {
            [
                "part/", "cpr", "fds", "ram", "stand-ins", "changes", "mode", "names", "ids", "0.name", "count", "sent",
                "trial", "mark-fd", "mark-number", "fd-names", "fd-ids", "parts", "helper-pids", "channel-fd", "secret",
            ]
        },
        seeds: {
            var state = CprState(
                mode: "restart",
                fds: [
                    PreservedFDs.Entry(name: "chardev-c-socket", id: 0, fd: 5),
                    PreservedFDs.Entry(name: "tap", id: -1, fd: 6),
                ],
                ram: [
                    RAMRecord(name: "pc.ram", usedLength: 1 << 20, maxLength: 1 << 21, alignment: 4096, fd: 7)
                ],
                times: UpdateTimes())
            state.endingChildren = [17, 18]
            state.placeholder = 20
            state.callLimit = 1_000_000
            state.checkpointFD = 9
            state.timerSlack = 50_000
            state.addresses = [5: [1, 0, 0x2f, 0x78, 0]]
            state.memoryIdentity = "0123456789abcdef"
            var part = StateWriter()
            part.put("unread", bytes: [1, 2, 3])
            state.addPart("chardev/c", part)
            var changes = state
            changes.gone = CprState.Gone(fds: [PreservedFDs.Key(name: "x", id: 3)], parts: ["chardev/d"])
            changes.ram = []
            var sent = state
            _ = sent.passAll()
            return [state, changes, sent].map { $0.encoded() }
        },
        make: {
            { input in
                guard var state = try? CprState(parsing: Sections.mended(input)) else { return }
                for part in state.parts.all {
                    if let reader = try? state.part(part.name) { _ = reader.dump.count }
                }
                let encoded = state.encoded()
                let again: CprState
                do throws(VMMError) { again = try CprState(parsing: encoded) } catch {
                    found("a state that was taken is refused when written again: \(error.message)")
                }
                // The version written is this VMM's own.
                expect(again.fds.map(\.fd) == state.fds.map(\.fd), "descriptors have changed")
                expect(again.ram.map(\.name) == state.ram.map(\.name), "memory has changed")
                expect(again.mode == state.mode && again.passedFDs == state.passedFDs, "the state has changed")
                // As many descriptors as it says come along.
                state.adopt((0..<state.passedFDs).map { Int32(100 + $0) })
                expect(state.passedFDs == 0, "descriptors are missing after all have come")
                state.replaceParts(by: again)
                state.take(from: again)
            }
        })
}
