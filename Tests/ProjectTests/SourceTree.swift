import Foundation
import TestSupport

/// The sources of this tree, as the tests of its structure read them.
enum SourceTree {
    static let runtime = "Sources/Runtime/Sources"

    static func text(_ path: String) throws -> String {
        try String(contentsOfFile: "\(Products.repository)/\(path)", encoding: .utf8)
    }

    static func exists(_ path: String) -> Bool {
        FileManager.default.fileExists(atPath: "\(Products.repository)/\(path)")
    }

    /// The names in a directory, in order.
    static func entries(_ directory: String) throws -> [String] {
        try FileManager.default.contentsOfDirectory(atPath: "\(Products.repository)/\(directory)").sorted()
    }

    /// Every file below a directory that has one of these extensions.
    static func files(_ directory: String, _ extensions: [String]) throws -> [String] {
        let all = try FileManager.default.subpathsOfDirectory(atPath: "\(Products.repository)/\(directory)")
        return all.filter { path in extensions.contains { path.hasSuffix(".\($0)") } }.map { "\(directory)/\($0)" }
            .sorted()
    }

    /// The targets of the core runtime, the lowest first, as its manifest has them.
    static func floors() throws -> [String] {
        let manifest = try text("Sources/Runtime/Package.swift")
        guard let list = manifest.firstMatch(of: #/let floors = \[([^\]]*)\]/#) else { return [] }
        return list.1.matches(of: #/"(\w+)"/#).map { String($0.1) }
    }
}
