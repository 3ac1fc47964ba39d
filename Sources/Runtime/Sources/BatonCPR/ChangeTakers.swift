import BatonBase
import BatonMachine
import Glibc

/// Parts of a new VMM that can take over what has changed since it was executed.
/// Everything else that has changed makes the update fail, by its name.
final class ChangeTakers {
    private struct Taker {
        let part: String
        let fdPrefix: String?
        let take: (PartChanges) throws(VMMError) -> Void
        var prefixLength: Int { fdPrefix?.utf8.count ?? 0 }
    }

    private var takers: [Taker] = []
    private var byPart: [String: Int] = [:]

    func add(part: String, fds: String?, _ take: @escaping (PartChanges) throws(VMMError) -> Void) {
        byPart[part] = takers.count
        takers.append(Taker(part: part, fdPrefix: fds, take: take))
    }

    /// Gives the takers what is theirs.
    /// - Parameters:
    ///   - fds: that came with the state, in its order.
    ///   - askedFDs: names and ids that were asked for.
    /// - Returns: the descriptors that nobody has asked for yet; nil for one that is gone.
    /// - Throws: the first thing that nobody takes; nothing has been given to anybody then. Or a taker's error.
    func apply(
        _ state: CprState, fds: [Int32], askedParts: Set<String>, askedFDs: Set<PreservedFDs.Key>
    ) throws(VMMError) -> [(PreservedFDs.Key, Int32?)] {
        var changedFDs: [Int: [PreservedFDs.Key: Int32]] = [:]
        var goneFDs: [Int: Set<PreservedFDs.Key>] = [:]
        var unasked: [(PreservedFDs.Key, Int32?)] = []
        var order: [Int] = []
        func note(_ taker: Int) { if !order.contains(taker) { order.append(taker) } }
        for part in state.parts.all.map(\.name) + (state.gone?.parts ?? []) {
            if let taker = byPart[part] {
                note(taker)
            } else if askedParts.contains(part) {
                throw ChangeTakers.unknown("the state of '\(part)'")
            }
        }
        func taker(of key: PreservedFDs.Key) throws(VMMError) -> Int? {
            let name = key.name
            // One part's name may begin as another's does.
            let mine = takers.indices.filter { takers[$0].fdPrefix.map(name.hasPrefix) == true }
            guard let index = mine.max(by: { takers[$0].prefixLength < takers[$1].prefixLength }) else {
                if askedFDs.contains(key) { throw ChangeTakers.unknown("the descriptor '\(name)' id \(key.id)") }
                return nil
            }
            note(index)
            return index
        }
        for (entry, fd) in zip(state.fds, fds) {
            let key = PreservedFDs.Key(name: entry.name, id: entry.id)
            if let taker = try taker(of: key) {
                changedFDs[taker, default: [:]][key] = fd
            } else {
                unasked.append((key, fd))
            }
        }
        for key in state.gone?.fds ?? [] {
            if let taker = try taker(of: key) {
                goneFDs[taker, default: []].insert(key)
            } else {
                unasked.append((key, nil))
            }
        }
        // A monitor's session follows its chardev's connection.
        for index in order.sorted() {
            let part = takers[index].part
            let reader = try state.part(part)
            do throws(VMMError) {
                try takers[index].take(
                    PartChanges(
                        state: reader, isGone: state.gone?.parts.contains(part) == true, fds: changedFDs[index] ?? [:],
                        gone: goneFDs[index] ?? []))
            } catch {
                throw error.prefixed("'\(part)' has changed since the new VMM was started")
            }
        }
        return unasked
    }

    private static func unknown(_ what: String) -> VMMError {
        VMMError("\(what) has changed since the new VMM was started", hint: "Try the update again.")
    }
}
