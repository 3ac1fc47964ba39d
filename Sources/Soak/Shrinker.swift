/// Looks for a short part of a list that fails as the whole does (ddmin of Zeller and Hildebrandt, "Simplifying and
/// isolating failure-inducing input", 2002): it leaves out halves, quarters and so on, down to single elements.
package struct Shrinker<Element> {
    /// Whether a list fails in the same way.
    private let fails: ([Element]) throws -> Bool
    /// Whether there is time for another try.
    private let mayGoOn: (_ tries: Int) -> Bool
    /// How many lists have been tried.
    package private(set) var tries = 0

    package init(mayGoOn: @escaping (_ tries: Int) -> Bool, fails: @escaping ([Element]) throws -> Bool) {
        self.mayGoOn = mayGoOn
        self.fails = fails
    }

    /// - Parameters:
    ///   - list: fails.
    ///   - guesses: parts of it that may well be enough, the shortest first.
    /// - Returns: the shortest that was found. If there was time, no single element can be left out of it.
    package mutating func shortest(of list: [Element], guesses: [[Element]] = []) throws -> [Element] {
        var best = list
        for guess in guesses where guess.count < best.count {
            if try stillFails(guess) {
                best = guess
                break
            }
        }
        var parts = 2
        while best.count > 1, mayGoOn(tries) {
            if let shorter = try withoutOne(of: parts, best) {
                best = shorter
                parts = max(parts - 1, 2)
            } else if parts < best.count {
                parts = min(parts * 2, best.count)
            } else {
                break
            }
        }
        return best
    }

    private mutating func stillFails(_ list: [Element]) throws -> Bool {
        guard mayGoOn(tries) else { return false }
        tries += 1
        return try fails(list)
    }

    /// A list of which one of so many parts is left out, and that still fails. The first ones are more likely to go.
    private mutating func withoutOne(of parts: Int, _ list: [Element]) throws -> [Element]? {
        for part in 0..<parts {
            let (start, end) = (list.count * part / parts, list.count * (part + 1) / parts)
            guard start < end, end - start < list.count else { continue }
            let rest = Array(list[..<start] + list[end...])
            if try stillFails(rest) { return rest }
        }
        return nil
    }
}
