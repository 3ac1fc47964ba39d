import BatonRuntime
import Foundation
import TestSupport
import Testing

/// Whose modules are loaded: ownership, modes and links, each for real. One at
/// a time: the loader is for one thread.
@Suite(.oneThread) struct ModuleTrustTests {
    private let directory: TemporaryDirectory
    private let loader: ModuleLoader
    private static let isRoot = geteuid() == 0
    private static let someoneElse: uid_t = 54321

    init() throws {
        directory = try TemporaryDirectory()
        loader = ModuleLoader(registry: ModuleRegistry(), directories: [])
    }

    /// A good module at a path below the test's directory.
    private func module(_ name: String) throws -> String {
        try directory.copyOfRestart(name)
    }

    private func refusal(_ path: String) -> String { loader.refusal(of: path) }

    @Test func aRelativePathIsMadeAbsolute() throws {
        let path = try module("libmode-restart.so")
        let up = String(repeating: "../", count: FileManager.default.currentDirectoryPath.split(separator: "/").count)
        #expect(refusal(up + path.dropFirst()) == "loaded")
        #expect(loader.loaded.map(\.path) == [path])
    }

    @Test func aLinkIsFollowedBeforeTheRulesAndNotAfter() throws {
        let path = try module("real/libmode-restart.so")
        let link = directory.file("libmode-restart.so")
        try FileManager.default.createSymbolicLink(atPath: link, withDestinationPath: path)
        try #require(chmod(directory.file("real"), 0o777) == 0)
        #expect(refusal(link).contains("the directory '\(directory.file("real"))' is writable by everyone"))
        try #require(chmod(directory.file("real"), 0o755) == 0)
        #expect(refusal(link) == "loaded")
        #expect(loader.loaded.map(\.path) == [path])
    }

    @Test func whatIsNotAFileIsRefusedAndNotWaitedFor() throws {
        let pipe = directory.file("mode-pipe.so")
        try #require(mkfifo(pipe, 0o600) == 0)
        #expect(refusal(pipe).contains("is not a regular file"))
        let folder = directory.file("mode-folder.so")
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: false)
        #expect(refusal(folder).contains("is not a regular file"))
        try FileManager.default.createSymbolicLink(
            atPath: directory.file("mode-null.so"), withDestinationPath: "/dev/null")
        #expect(refusal(directory.file("mode-null.so")).contains("is not named as a module"))
        try FileManager.default.createSymbolicLink(
            atPath: directory.file("mode-loop.so"), withDestinationPath: "mode-loop.so")
        #expect(refusal(directory.file("mode-loop.so")).contains("Too many levels of symbolic links"))
    }

    @Test(.enabled(if: isRoot, "needs root, to give files away")) func anothersFileOrDirectoryIsRefused() throws {
        let path = try module("theirs/libmode-restart.so")
        try #require(chown(path, Self.someoneElse, 0) == 0)
        #expect(refusal(path).contains("'\(path)' belongs to user \(Self.someoneElse)"))
        try #require(chown(path, 0, 0) == 0)
        let theirs = directory.file("theirs")
        try #require(chown(theirs, Self.someoneElse, 0) == 0)
        #expect(refusal(path).contains("the directory '\(theirs)' belongs to user \(Self.someoneElse)"))
        // The owner of a sticky directory may exchange what is in it.
        try #require(chmod(theirs, 0o1777) == 0)
        #expect(refusal(path).contains("the directory '\(theirs)' belongs to user \(Self.someoneElse)"))
        try #require(chown(theirs, 0, 0) == 0)
        #expect(refusal(path) == "loaded")
    }

    @Test(.enabled(if: isRoot, "needs root, to change groups")) func anothersGroupMayNotWrite() throws {
        let path = try module("group/libmode-restart.so")
        let group = directory.file("group")
        try #require(chown(path, 0, Self.someoneElse) == 0 && chmod(path, 0o664) == 0)
        #expect(refusal(path).contains("'\(path)' is writable by group \(Self.someoneElse)"))
        try #require(chmod(path, 0o644) == 0 && chown(group, 0, Self.someoneElse) == 0 && chmod(group, 0o775) == 0)
        #expect(refusal(path).contains("the directory '\(group)' is writable by group \(Self.someoneElse)"))
        try #require(chmod(group, 0o755) == 0)
        #expect(refusal(path) == "loaded")
    }

    @Test func aStickyDirectoryOfRootOrTheUserIsAllowed() throws {
        let path = try module("sticky/below/libmode-restart.so")
        try #require(chmod(directory.file("sticky"), 0o1777) == 0)
        #expect(refusal(path) == "loaded")
    }
}
