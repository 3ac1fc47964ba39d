import Foundation
import TestSupport
import Testing

/// What the documents say of the tree is there.
@Suite("Documents")
struct DocumentTests {
    private static let directory = "Sources/Documentation"

    private func documents() throws -> [String] {
        try SourceTree.files(DocumentTests.directory, ["md"]) + ["README.md"]
    }

    /// Paths in backticks, from the top of the repository.
    @Test func pathsExist() throws {
        for document in try documents() {
            for match in try SourceTree.text(document).matches(of: #/`((?:Sources|Plugins|Tests)(?:/[\w.+-]+)*)/?`/#) {
                #expect(SourceTree.exists(String(match.1)), "\(document) names \(match.1), which is not there")
            }
        }
    }

    @Test func theMapNamesEveryPart() throws {
        let map = try SourceTree.text("\(DocumentTests.directory)/architecture.md")
        let parts =
            try SourceTree.entries("Sources").map { "Sources/\($0)" }
            + SourceTree.entries("Plugins").map { "Plugins/\($0)" }
            + SourceTree.floors().map { "\(SourceTree.runtime)/\($0)" }
        for part in parts where part != DocumentTests.directory && part != "Sources/HarnessSystem" {
            #expect(map.contains("`\(part)`") || map.contains("`\(part)/"), "architecture.md does not name \(part)")
        }
    }

    /// Links between documents.
    @Test func linksLeadSomewhere() throws {
        for document in try documents() {
            let directory = document.split(separator: "/").dropLast().joined(separator: "/")
            for match in try SourceTree.text(document).matches(of: #/\]\(([^)#:]+)(?:#[^)]*)?\)/#) {
                let target = directory.isEmpty ? String(match.1) : "\(directory)/\(match.1)"
                #expect(SourceTree.exists(target), "\(document) links to \(match.1), which is not there")
            }
        }
    }
}
