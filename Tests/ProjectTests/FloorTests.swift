import Foundation
import TestSupport
import Testing

/// The core runtime's targets: each floor imports only those below it.
@Suite("Floors of the core runtime")
struct FloorTests {
    private static let roof = "BatonRuntime"

    /// What a file imports, with what is before the word: `@_exported`, `public` …
    private func imports(_ path: String) throws -> [(attributes: String, module: String)] {
        let levels: Set<Substring> = ["public", "package", "internal", "fileprivate", "private"]
        return try SourceTree.text(path).split(separator: "\n").compactMap { line in
            let words = line.split(separator: " ")
            guard let place = words.firstIndex(of: "import"), place + 1 < words.count,
                words[..<place].allSatisfy({ $0.hasPrefix("@") || levels.contains($0) }),
                // `import struct Module.Type`.
                let module = words.last?.split(separator: ".").first
            else { return nil }
            return (words[..<place].joined(separator: " "), String(module))
        }
    }

    @Test func everyTargetIsAFloor() throws {
        let others: Set = [FloorTests.roof, "CBaton", "fingerprint"]
        let directories = Set(try SourceTree.entries(SourceTree.runtime)).subtracting(others)
        #expect(directories == Set(try SourceTree.floors()))
    }

    @Test func aFileImportsLowerFloorsOnly() throws {
        let floors = try SourceTree.floors()
        #expect(floors.count == 6)
        for (index, floor) in floors.enumerated() {
            let files = try SourceTree.files("\(SourceTree.runtime)/\(floor)", ["swift"])
            #expect(!files.isEmpty)
            let allowed = Set(floors[..<index] + ["CBaton", "Glibc"])
            for file in files {
                for (attributes, module) in try imports(file) {
                    #expect(allowed.contains(module), "\(file) imports \(module)")
                    #expect(attributes.isEmpty, "\(file) imports \(module) as '\(attributes)'")
                }
            }
        }
    }

    /// A module sees all floors by one import.
    @Test func theRoofExportsEveryFloor() throws {
        let floors = try SourceTree.floors()
        let exported = try SourceTree.files("\(SourceTree.runtime)/\(FloorTests.roof)", ["swift"]).flatMap(imports)
            .filter { $0.attributes.contains("@_exported") }.map(\.module)
        #expect(Set(exported) == Set(floors))
    }

    /// Parts, modules and tools see the whole core or none of it.
    @Test func nobodyElseImportsAFloor() throws {
        let floors = try SourceTree.floors()
        let outside = try (SourceTree.files("Sources", ["swift"]) + SourceTree.files("Plugins", ["swift"]))
            .filter { !$0.hasPrefix("Sources/Runtime/") }
        for file in outside {
            for (_, module) in try imports(file) {
                #expect(!floors.contains(module), "\(file) imports \(module) instead of \(FloorTests.roof)")
            }
        }
    }
}
