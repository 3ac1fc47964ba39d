import Soak
import TestSupport
import Testing

@Suite("The search for a shorter list that fails")
struct ShrinkerTests {
    /// What was found, and how many lists were tried.
    private func shrink(
        _ list: [Int], guesses: [[Int]] = [], most: Int = 10_000, _ fails: @escaping ([Int]) -> Bool
    ) throws -> (list: [Int], tries: Int) {
        var shrinker = Shrinker<Int>(mayGoOn: { $0 < most }, fails: fails)
        return (try shrinker.shortest(of: list, guesses: guesses), shrinker.tries)
    }

    @Test("Just what is needed is left, in order")
    func needed() throws {
        for needed in [[0], [39], [3, 17], [0, 39], [5, 6, 7], [1, 13, 20, 38]] {
            let found = try shrink(Array(0..<40)) { list in needed.allSatisfy(list.contains) }
            #expect(found.list == needed)
        }
    }

    @Test("No single element can be left out of what is found, whatever is needed")
    func minimal() throws {
        var random = SeededGenerator(seed: 7)
        for _ in 0..<50 {
            // One of several sets is enough.
            let sets = (0..<3).map { _ in
                Set((0..<Int.random(in: 1...5, using: &random)).map { _ in Int.random(in: 0..<60, using: &random) })
            }
            func fails(_ list: [Int]) -> Bool { sets.contains { $0.isSubset(of: list) } }
            let found = try shrink(Array(0..<60), fails).list
            #expect(fails(found))
            for index in found.indices {
                var rest = found
                rest.remove(at: index)
                #expect(!fails(rest), "\(found) of \(sets)")
            }
        }
    }

    @Test("An element that is needed often, or only after another, is kept as often")
    func repeated() throws {
        let list = [1, 2, 1, 3, 1, 2, 1, 4, 1]
        #expect(try shrink(list) { list in list.count { $0 == 1 } >= 3 }.list == [1, 1, 1])
        func follows(_ list: [Int]) -> Bool {
            guard let first = list.firstIndex(of: 3) else { return false }
            return list[first...].contains(2)
        }
        #expect(try shrink(list, follows).list == [3, 2])
    }

    @Test("A guess that fails is the beginning")
    func guesses() throws {
        let found = try shrink(Array(0..<1000), guesses: [[999], [1, 2, 3, 4]]) { $0.contains(3) }
        #expect(found.list == [3])
        #expect(found.tries <= 6, "two guesses, and a search in four")
    }

    @Test("Without time left, what has been found so far still fails")
    func limit() throws {
        for most in [0, 1, 5, 10] {
            let found = try shrink(Array(0..<64), most: most) { $0.contains(40) && $0.contains(3) }
            #expect(found.tries == most)
            #expect(found.list.contains(40) && found.list.contains(3))
            #expect(most > 0 || found.list.count == 64)
        }
    }

    @Test("What never fails again stays as it is")
    func never() throws {
        #expect(try shrink(Array(0..<20)) { _ in false }.list == Array(0..<20))
    }

    @Test("An error ends the search")
    func error() {
        var shrinker = Shrinker<Int>(mayGoOn: { _ in true }, fails: { _ in throw Failure("no machine") })
        #expect(throws: Failure.self) { try shrinker.shortest(of: [1, 2, 3]) }
    }
}
