import BatonBase
import BatonMachine
import CBaton
import Glibc

/// What the new VMM got at its start: so that at the change of hands
/// only what has changed since is handed over.
struct HandedState {
    private let fds: [PreservedFDs.Entry]
    /// Which descriptors of `process` those of `fds` were then.
    private var numbers: ArraySlice<Int32>
    private let ram: [RAMRecord]
    private let parts: [String: (version: UInt32, payload: ArraySlice<UInt8>)]
    /// The process in which it was executed; this one, if it is another's.
    private let process: pid_t

    init(_ state: CprState, process: pid_t) {
        fds = state.fds
        numbers = state.fds.map(\.fd)[...]
        ram = state.ram
        parts = Dictionary(state.partPayloads.map { ($0.name, ($0.version, $0.payload)) }) { first, _ in first }
        self.process = process
    }

    /// The new VMM has not inherited the descriptors, but got copies of them.
    /// - Parameter copies: of this process, in the state's order, open for as long as this is used.
    mutating func wereSent(as copies: ArraySlice<Int32>) { numbers = copies }

    /// The part of `state`, which is complete, that the new VMM does not know.
    /// - Returns: that, and the descriptors to go along with it. Borrowed.
    /// - Throws: what cannot be told it any more, by name.
    func changes(to state: CprState) throws(VMMError) -> (CprState, fds: [Int32]) {
        try checkRAM(state.ram)
        var result = state
        result.ram = []
        result.link = nil
        var gone = CprState.Gone()
        var left = parts
        result.removeParts { name, version, payload in
            guard let before = left.removeValue(forKey: name) else { return false }
            return before.version == version && before.payload == payload
        }
        gone.parts = left.keys.sorted()
        let changed = changedFDs(state.fds, gone: &gone.fds)
        result.fds = changed.map { PreservedFDs.Entry(name: $0.name, id: $0.id, fd: CprState.passed) }
        result.gone = gone
        return (result, changed.map(\.fd))
    }

    private func checkRAM(_ now: [RAMRecord]) throws(VMMError) {
        guard now.count == ram.count else { throw VMMError("guest memory was added or taken away meanwhile") }
        for (before, after) in zip(ram, now) {
            guard before.name == after.name, before.usedLength == after.usedLength, before.fd == after.fd else {
                throw VMMError("guest memory '\(after.name)' has changed meanwhile", hint: "Try the update again.")
            }
        }
    }

    /// Those that the new VMM has not inherited.
    private func changedFDs(_ now: [PreservedFDs.Entry], gone: inout [PreservedFDs.Key]) -> [PreservedFDs.Entry] {
        // What stays as it is for long is saved first, and once.
        let same = zip(fds, now).prefix { $0 == $1 }.count
        guard same < fds.count || same < now.count else { return [] }
        var before: [PreservedFDs.Key: Int32] = [:]
        for (entry, number) in zip(fds, numbers).dropFirst(same) {
            before[PreservedFDs.Key(name: entry.name, id: entry.id)] = number
        }
        let own = getpid()
        let changed = now[same...].filter { entry in
            guard let fd = before.removeValue(forKey: PreservedFDs.Key(name: entry.name, id: entry.id)) else {
                return true
            }
            return cbaton_is_same_file(process, fd, own, entry.fd) == 0
        }
        gone = before.keys.sorted { ($0.name, $0.id) < ($1.name, $1.id) }
        return changed
    }
}
