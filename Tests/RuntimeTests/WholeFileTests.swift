import BatonRuntime
import Foundation
import TestSupport
import Testing

/// Files that appear whole or not at all.
@Suite struct WholeFileTests {
    private let directory: TemporaryDirectory
    private var path: String { directory.file("file") }

    init() throws { directory = try TemporaryDirectory() }

    private func names() throws -> [String] {
        try FileManager.default.contentsOfDirectory(atPath: directory.path).sorted()
    }

    private func message(_ body: () throws -> Void) -> String {
        do {
            try body()
            return "accepted"
        } catch { return (error as? VMMError)?.message ?? "\(error)" }
    }

    @Test func theNameIsGivenAtTheEndAndNothingStaysOfOneThatIsGivenUp() throws {
        try directory.write("file", "old")
        try withExtendedLifetime(try WholeFile(path)) { file in
            try FD.writeAll(file.fd, Array("half".utf8), to: path)
            #expect(try String(contentsOfFile: path, encoding: .utf8) == "old")
            #expect(try names().count == 2)
        }
        #expect(try names() == ["file"])
        let file = try WholeFile(path)
        try FD.writeAll(file.fd, Array("new".utf8), to: path)
        try file.commit(durable: true)
        #expect(try String(contentsOfFile: path, encoding: .utf8) == "new")
        #expect(try names() == ["file"])
    }

    @Test func whatComesMeanwhileIsNotReplaced() throws {
        let file = try WholeFile(path)
        try #require(mkfifo(path, 0o600) == 0)
        #expect(message { try file.commit() } == "Could not write '\(path)': it is a FIFO, not a regular file")
        try FileManager.default.removeItem(atPath: path)
        let other = try directory.write("other", "other")
        try #require(symlink("other", path) == 0)
        #expect(message { try file.commit() }.contains("leads to another file"))
        #expect(try String(contentsOfFile: other, encoding: .utf8) == "other")
    }

    @Test func anEmptyNameAndAMissingDirectoryAreErrors() {
        #expect(message { _ = try WholeFile("") }.contains("a file's name is needed"))
        #expect(
            message { _ = try WholeFile("/nonexistent/x") }
                == "Could not create '/nonexistent/x': No such file or directory")
    }
}
