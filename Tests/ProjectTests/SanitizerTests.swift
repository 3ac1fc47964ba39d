import Foundation
import TestSupport
import Testing

/// What Tests/Sanitizers leaves out of the runs under a sanitizer.
@Suite("Sanitizers")
struct SanitizerTests {
    private static let directory = "Tests/Sanitizers"

    @Test("What is left out under one is there, and has a reason")
    func leftOut() throws {
        var names: Set<String> = []
        for file in try SourceTree.files("Tests", ["swift"]) {
            names.formUnion(file.split(separator: "/").dropFirst().prefix(1).map(String.init))
            for match in try SourceTree.text(file).matches(of: #/\b(?:struct|class|extension|func) (\w+)/#) {
                names.insert(String(match.1))
            }
        }
        let lines = try SourceTree.text("\(Self.directory)/left-out.txt").split(separator: "\n")
        for line in lines where !line.hasPrefix("#") {
            let fields = line.split(separator: "|", maxSplits: 2).map { $0.trimmingCharacters(in: .whitespaces) }
            try #require(fields.count == 3, "\(line)")
            #expect(["address", "undefined", "thread"].contains(fields[0]), "\(line)")
            #expect(!fields[2].isEmpty, "\(line)")
            for word in fields[1].matches(of: #/\w+/#) {
                #expect(names.contains(String(word.0)), "left-out.txt: there is no '\(word.0)' in Tests")
            }
        }
    }
}
