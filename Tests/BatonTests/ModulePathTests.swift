import Foundation
import TestSupport
import Testing

/// `BATON_MODULE_PATH`: directories that the environment adds.
@Suite("Module path") struct ModulePathTests {
    private let directory: TemporaryDirectory

    init() throws {
        directory = try TemporaryDirectory()
        try FileManager.default.createDirectory(atPath: directory.file("modules"), withIntermediateDirectories: false)
        try FileManager.default.copyItem(
            atPath: Products.module("mode-restart"), toPath: directory.file("modules/libmode-elsewhere.so"))
    }

    private func modules(_ program: [String], _ path: String) throws -> (text: String, errors: String) {
        let process = try ChildProcess(program + ["-module", "help"], environment: ["BATON_MODULE_PATH": path])
        #expect(try process.waitForExit() == .status(0))
        return (process.output, process.errors)
    }

    @Test("Its absolute directories are searched first, relative ones not at all")
    func isSearched() throws {
        let modules = directory.file("modules")
        let (text, errors) = try self.modules([Products.baton], "relative:\(modules)")
        #expect(text.hasPrefix("Modules (searched in \(modules), "))
        #expect(errors.contains("'relative' is not an absolute path, so it is not searched"))
        // The module is what its name does not say.
        #expect(errors.contains("provides mode-restart, which is not what its file name says"))
    }

    private static let loader = "/lib64/ld-linux-x86-64.so.2"

    @Test(
        "It is ignored by a process that has privileges which its parent had not",
        .enabled(
            if: geteuid() == 0 && FileManager.default.fileExists(atPath: loader), "needs root, and an x86-64 glibc"))
    func isIgnoredWhenPrivileged() throws {
        // A dynamic linker that is set-uid: what it runs is privileged.
        let linker = directory.file("ld.so")
        try FileManager.default.copyItem(atPath: try #require(realpath(Self.loader)), toPath: linker)
        try #require(chown(linker, 65534, 0) == 0 && chmod(linker, 0o4755) == 0 && chmod(directory.path, 0o755) == 0)
        let libraries = "\(Products.directory):\(try swiftLibraries())"
        let modules = directory.file("modules")
        let arguments = ["--library-path", libraries, Products.baton]
        #expect(try self.modules([Self.loader] + arguments, modules).text.contains(modules))
        #expect(try !self.modules([linker] + arguments, modules).text.contains(modules))
    }

    private func realpath(_ path: String) -> String? {
        Foundation.realpath(path, nil).map { pointer in
            defer { free(pointer) }
            return String(cString: pointer)
        }
    }

    /// The directory of the Swift libraries that the VMM uses.
    private func swiftLibraries() throws -> String {
        let libraries = try ChildProcess.run(["ldd", Products.baton]).split(separator: "\n")
        let line = try #require(libraries.first { $0.contains("libswiftCore.so =>") })
        let path = try #require(line.split(separator: " ").first { $0.hasPrefix("/") })
        return (String(path) as NSString).deletingLastPathComponent
    }
}
