import Foundation
import TestSupport
import Testing

/// The same small preserver (Tests/ForeignModules) in languages other than C: built against the binary
/// interface alone, it keeps its state and a descriptor over updates.
@Suite("A foreign module", .enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"))
struct ForeignLanguageTests {
    private static let compiler = ["g++", "clang++"].compactMap { Products.find($0) }.first
    /// Rustup puts it where PATH may not lead.
    private static let rustc = Products.find("rustc") ?? executable("\(NSHomeDirectory())/.cargo/bin/rustc")
    private static let zig = Products.find("zig")

    private static func executable(_ path: String) -> String? {
        FileManager.default.isExecutableFile(atPath: path) ? path : nil
    }

    @Test("in C++ keeps what it has over updates", .enabled(if: compiler != nil, "needs g++ or clang++"))
    func cPlusPlus() throws {
        try check("tally.cpp") { source, module in
            [
                try #require(Self.compiler), "-std=c++17", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC",
                "-I", Products.headers, "-o", module, source,
            ]
        }
    }

    @Test("in Rust keeps what it has over updates", .enabled(if: rustc != nil, "needs rustc"))
    func rust() throws {
        try check("tally.rs") { source, module in
            [
                try #require(Self.rustc), "--edition", "2021", "--crate-type", "cdylib", "-C", "panic=abort",
                "-D", "warnings", "-o", module, source,
            ]
        }
    }

    @Test("in Zig keeps what it has over updates", .enabled(if: zig != nil, "needs zig"))
    func zig() throws {
        try check("tally.zig") { source, module in
            [
                try #require(Self.zig), "build-lib", "-dynamic", "-fallow-shlib-undefined", "-lc",
                "--cache-dir", "\(module).cache", "-femit-bin=\(module)", source,
            ]
        }
    }

    /// Builds the module, and has it work over updates.
    private func check(_ source: String, _ command: (_ source: String, _ module: String) throws -> [String]) throws {
        let directory = try TemporaryDirectory()
        let module = directory.file("libpreserver-tally.so")
        try ChildProcess.run(
            try command("\(Products.repository)/Tests/ForeignModules/\(source)", module), by: .seconds(300))
        let guest = try CountingGuest(extra: ["-cpr-enable", "restart", "-module", module])
        let qmp = guest.qmp
        func add(_ count: Int) throws -> Int? {
            (try qmp.execute("tally-add", ["count": count]) as? [String: Any])?["total"] as? Int
        }
        /// What is behind the descriptor that the module has, if any.
        func memory() throws -> ino_t? {
            let answer = try qmp.execute("tally-query") as? [String: Any]
            let number = try #require(answer?["number"] as? Int)
            // One that took its guest back is another process.
            let cpr = try qmp.execute("query-cpr") as? [String: Any]
            let pid = try #require(cpr?["pid"] as? Int)
            var status = stat()
            return stat("/proc/\(pid)/fd/\(number)", &status) == 0 ? status.st_ino : nil
        }
        #expect(refusal { _ = try add(0) }.contains("count"))
        #expect(try memory() == nil)
        #expect(try add(5) == 5)
        #expect(refusal { _ = try add(13) } == "preserver-tally: 13 is not counted")
        let inode = try #require(try memory())
        for round in 1...3 {
            try qmp.execute("cpr-update", ["argv": guest.arguments])
            #expect(try memory() == inode)
            #expect(try add(2) == 5 + 2 * round)
        }
        // One that fails changes nothing, and what it had is its own.
        let text = refusal { try qmp.execute("cpr-update", ["argv": ["/bin/false"], "preflight": false]) }
        #expect(text.contains("the new VMM ended during its start"), "\(text)")
        #expect(try memory() == inode)
        #expect(try add(1) == 12)
        withExtendedLifetime(guest) {}
    }
}
