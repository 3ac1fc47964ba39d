import Foundation
import TestSupport
import Testing

/// spin searches all orders of steps of the handover's protocol, see Tests/HandoverModel.
@Suite("The model of the handover")
struct HandoverModelTests {
    /// A line of searches.txt.
    struct Search: CustomTestStringConvertible, Sendable {
        let model: String
        let macros: [String]
        /// `holds`, or the property that a mutation breaks.
        let outcome: String
        let what: String
        var testDescription: String { "\(what) (\(([model] + macros).joined(separator: " ")))" }

        init?(_ line: Substring) {
            let fields = line.split(separator: "|", omittingEmptySubsequences: false).map {
                $0.trimmingCharacters(in: .whitespaces)
            }
            guard fields.count == 4, !line.hasPrefix("#") else { return nil }
            (model, outcome, what) = (fields[0], fields[2], fields[3])
            macros = fields[1].split(separator: " ").map(String.init)
        }
    }

    private static let directory = "Tests/HandoverModel"
    static let searches = ((try? SourceTree.text("\(directory)/searches.txt")) ?? "").split(separator: "\n").compactMap
    {
        Search($0)
    }

    @Test(
        "It holds, and each fault that is put into it is found", .serialized,
        .enabled(if: Products.find("spin") != nil, "needs Debian's spin"),
        .enabled(if: Products.find("clang") != nil, "needs clang of the Swift toolchain"),
        arguments: HandoverModelTests.searches)
    func search(_ search: Search) throws {
        let script = "\(Products.repository)/\(Self.directory)/search.sh"
        let compiler = try #require(Products.find("clang"))
        let outcome = try ChildProcess.run(
            [script, search.model] + search.macros, environment: ["CC": compiler])
        #expect(outcome.hasPrefix("\(search.outcome) "), "\(outcome)")
    }

    @Test("There is something to search, and something to find")
    func list() {
        #expect(Self.searches.count { $0.outcome == "holds" } >= 5)
        #expect(Self.searches.count { $0.outcome != "holds" } >= 10)
    }

    /// Labels of the model that stand for a place in the code without a name of its own.
    private static let placesWithoutName: Set<String> = [
        "isReady", "isLost", "isBack", "isCommitted", "gone", "theEnd", "done", "itWaits", "ends", "isOver", "isLate",
        "newVMM", "pause",
    ]

    @Test("Its messages, stages and steps have the names of the code")
    func names() throws {
        var code = ""
        for directory in ["BatonCPR", "CBaton"] {
            for file in try SourceTree.files("\(SourceTree.runtime)/\(directory)", ["swift", "c"]) {
                code += try SourceTree.text(file)
            }
        }
        let words = Set(code.matches(of: #/\w+/#).map { String($0.0) })
        for model in ["handover", "exec"] {
            let text = try SourceTree.text("\(Self.directory)/\(model).pml")
            var names = text.matches(of: #/(?m)^(\w+):\s*$/#).map { String($0.1) }
            for list in text.matches(of: #/mtype:?\w* = \{([^}]*)\}/#) {
                names += list.1.split(separator: ",").map { $0.trimmingCharacters(in: .whitespaces) }
            }
            #expect(names.count > 3)
            for name in names where !Self.placesWithoutName.contains(name) {
                let constant = name.uppercased()
                #expect(words.contains(name) || words.contains(constant), "\(model).pml: the code has no '\(name)'")
            }
        }
    }
}
