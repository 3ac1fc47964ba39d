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
    private let parts: PartStates
    /// The process in which it was executed; this one, if it is another's.
    private let process: pid_t

    init(_ state: CprState, process: pid_t) {
        fds = state.fds
        numbers = state.fds.map(\.fd)[...]
        ram = state.ram
        parts = state.parts
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
        let (changedParts, goneParts) = state.parts.changes(since: parts)
        result.keepParts(changedParts)
        gone.parts = goneParts
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
        let own = getpid()
        func isSame(_ old: Int32, _ new: Int32) -> Bool { cbaton_is_same_file(process, old, own, new) != 0 }
        var changed: [PreservedFDs.Entry] = []
        // Whoever saves does so in the same order each time.
        var same = 0
        while same < min(fds.count, now.count), fds[same].id == now[same].id, fds[same].name == now[same].name {
            if fds[same].serial != now[same].serial, !isSame(numbers[numbers.startIndex + same], now[same].fd) {
                changed.append(now[same])
            }
            same += 1
        }
        guard same < fds.count || same < now.count else { return changed }
        var before: [PreservedFDs.Key: Int32] = [:]
        for (entry, number) in zip(fds, numbers).dropFirst(same) {
            before[PreservedFDs.Key(name: entry.name, id: entry.id)] = number
        }
        for entry in now[same...] {
            let old = before.removeValue(forKey: PreservedFDs.Key(name: entry.name, id: entry.id))
            if old.map({ isSame($0, entry.fd) }) != true { changed.append(entry) }
        }
        gone = before.keys.sorted { ($0.name, $0.id) < ($1.name, $1.id) }
        return changed
    }
}
