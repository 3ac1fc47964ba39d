import Foundation
import TestSupport
import Testing

/// `make install` into a directory, and modules made there with
/// `baton-ctl new-module`: what an author outside of the tree does.
@Suite(
    "Installation",
    .enabled(if: Products.find("pkg-config") != nil && Products.find("make") != nil, "needs make and pkg-config"),
    .enabled(if: Products.find("clang") != nil && Products.find("swiftc") != nil, "needs the toolchain's compilers"))
struct InstallTests {
    /// One installation for all tests of the suite, removed at the end of the process.
    private static let shared = Result { () throws -> TemporaryDirectory in
        let directory = try TemporaryDirectory()
        _ = try ChildProcess.run(["make", "-s", "-C", Products.repository, "install", "PREFIX=\(directory.path)"])
        return directory
    }
    let prefix: String
    let directory: TemporaryDirectory

    init() throws {
        prefix = try Self.shared.get().path
        directory = try TemporaryDirectory()
    }

    private var installedFiles: [String] {
        (FileManager.default.enumerator(atPath: prefix)?.compactMap { $0 as? String } ?? [])
            .map { "\(prefix)/\($0)" }.filter {
                (try? FileManager.default.attributesOfItem(atPath: $0)[.type] as? FileAttributeType) == .typeRegular
            }
    }

    @Test("Nothing that is installed refers to the build tree")
    func hasNoTrace() throws {
        let files = installedFiles
        #expect(files.count > 12)
        for file in files {
            let bytes = try Data(contentsOf: URL(fileURLWithPath: file))
            #expect(bytes.range(of: Data(Products.repository.utf8)) == nil, "\(file)")
            #expect(bytes.range(of: Data(Products.directory.utf8)) == nil, "\(file)")
        }
    }

    @Test("What is installed finds its runtime and its modules")
    func isComplete() throws {
        let text = try ChildProcess.run(["\(prefix)/bin/baton", "-module", "help"])
        for name in ["mode-restart", "memory-backend-memfd", "preserver-fd", "foreign-ffi"] {
            #expect(text.contains("\(prefix)/lib/baton/modules/lib\(name).so"), "\(name)")
        }
        #expect(try ChildProcess.run(["\(prefix)/bin/baton-ctl", "--help"]).contains("new-module"))
        let maps = try ChildProcess.run(
            ["sh", "-c", "LD_DEBUG=libs '\(prefix)/bin/baton' -version 2>&1 | grep 'calling init.*libBatonRuntime'"])
        #expect(maps.contains("\(prefix)/bin/../lib/libBatonRuntime.so"))
    }

    /// Kinds and languages of `new-module`.
    static let combinations = ["preserver", "mode", "memory-backend"].flatMap { kind in
        ["swift", "c"].map { (kind, $0) }
    }

    /// Makes and builds a module; returns its file.
    private func make(_ kind: String, _ language: String, _ name: String = "probe") throws -> String {
        let project = directory.file("project")
        let said = try ChildProcess.run([
            "\(prefix)/bin/baton-ctl", "new-module", "--kind", kind, "--lang", language, "--directory", project, name,
        ])
        #expect(said.contains("\(kind)-\(name)"))
        _ = try ChildProcess.run(["make", "-s", "-C", project, "CC=clang"], by: .seconds(300))
        return "\(project)/lib\(kind)-\(name).so"
    }

    /// A guest of the installed VMM that uses the module.
    private func arguments(_ kind: String, _ module: String) -> [String] {
        [
            "\(prefix)/bin/baton", "-module", module, "-nodefaults", "-nographic", "-S", "-bios", "none", "-m", "16M",
            "-machine", "virt,memory-backend=ram", "-qmp", "unix:\(directory.file("qmp")),server=on,wait=off",
            "-sandbox", "paths=\(directory.path)",
            "-object",
            "\(kind == "memory-backend" ? "memory-backend-probe,label=here" : "memory-backend-memfd"),id=ram,size=16M",
            "-cpr-enable", kind == "mode" ? "probe" : "restart",
        ]
    }

    @Test("A new module builds, loads, and works over updates and a rollback", arguments: combinations)
    func works(_ kind: String, _ language: String) throws {
        let arguments = arguments(kind, try make(kind, language))
        let process = try ChildProcess(arguments)
        let qmp = try QMPClient(path: directory.file("qmp"), of: process)
        func updates() throws -> Int? {
            guard kind == "preserver" else { return nil }
            return (try qmp.execute("query-probe") as? [String: Any])?["updates"] as? Int
        }
        for round in 1...3 {
            try qmp.execute("cpr-update", ["argv": arguments])
            #expect(try updates() ?? round == round)
        }
        #expect(throws: QMPClient.Refusal.self) {
            try qmp.execute("cpr-update", ["argv": ["/bin/false"], "preflight": false])
        }
        #expect(try updates() ?? 3 == 3)
        try qmp.execute("cpr-update", ["argv": arguments])
        #expect(try updates() ?? 4 == 4)
        try qmp.execute("quit")
        try process.waitForExit()
    }

    /// The conformance suite, where it is installed.
    static let hasHarness = FileManager.default.isExecutableFile(atPath: "\(Products.directory)/baton-harness")

    @Test("A new module passes its own test", .enabled(if: hasHarness, "needs baton-harness"), arguments: combinations)
    func passesItsTest(_ kind: String, _ language: String) throws {
        _ = try make(kind, language)
        _ = try ChildProcess.run(["make", "-s", "-C", directory.file("project"), "test"], by: .seconds(600))
    }

    @Test("A directory with something in it, and a bad name, are refused")
    func refusals() throws {
        let tool = "\(prefix)/bin/baton-ctl"
        try directory.write("file", "")
        for (name, path, expected) in [
            ("probe", directory.path, "is not empty"), ("Probe", directory.file("new"), "is not a module's name"),
            ("a/b", directory.file("new"), "is not a module's name"),
            ("-x", directory.file("new"), "Missing expected argument"),
            ("x-", directory.file("new"), "is not a module's name"),
        ] {
            let process = try ChildProcess([
                tool, "new-module", "--kind", "mode", "--lang", "c", "--directory", path, name,
            ])
            #expect(try process.waitForExit() != .status(0))
            #expect(process.errors.contains(expected), "\(name): \(process.errors)")
        }
        #expect(!FileManager.default.fileExists(atPath: directory.file("new")))
    }

    // MARK: Machines

    @Test("The machine and accelerator of the documentation build outside of the tree, and go over updates")
    func machine() throws {
        let page = "\(Products.repository)/Sources/Documentation/machines.md"
        let text = try String(contentsOfFile: page, encoding: .utf8)
        let block = try #require(text.components(separatedBy: "```swift\n").last?.components(separatedBy: "```").first)
        _ = try make("mode", "swift")
        let project = directory.file("project"), module = "libmachine-counting.so"
        try directory.write("project/module.swift", block)
        try ChildProcess.run(["make", "-s", "-B", "-C", project, "CC=clang", "MODULE=\(module)"], by: .seconds(300))
        let ram = directory.file("ram")
        let arguments = [
            "\(prefix)/bin/baton", "-module", "\(project)/\(module)", "-machine", "counting,memory-backend=ram",
            "-object", "memory-backend-file,id=ram,size=1M,share=on,mem-path=\(ram)", "-m", "1M", "-nodefaults",
            "-nographic", "-qmp", "unix:\(directory.file("qmp")),server=on,wait=off", "-sandbox",
            "paths=\(directory.path)", "-cpr-enable", "restart",
        ]
        let process = try ChildProcess(arguments)
        let qmp = try QMPClient(path: directory.file("qmp"), of: process)
        let memory = try SharedMemory(path: ram)
        var counted: UInt64 = 0
        func awaitSteps() throws {
            let target = counted + 20
            try eventually("it counts on; \(process.report)") {
                let count = memory.load(UInt64.self, at: 0)
                guard count >= counted else { throw TestError("\(count) came after \(counted)") }
                counted = count
                return count >= target
            }
        }
        for _ in 0..<3 {
            try awaitSteps()
            try qmp.execute("cpr-update", ["argv": arguments])
        }
        try awaitSteps()
        try qmp.execute("quit")
        #expect(try process.waitForExit() == .status(0))
    }

    // MARK: Registration

    @Test(
        "What is registered after a failure, or too late, does not stay",
        arguments: [
            (
                "try registrar.add(Mode(\"probe\")); throw VMMError(\"no luck\")",
                "failed to register: no luck", nil
            ),
            (
                "try registrar.add(Mode(\"probe\")); try? registrar.add(Mode(\"probe\")); "
                    + "try? registrar.add(Mode(\"other\"))",
                "registers the mode 'probe' twice", nil
            ),
            (
                "late = registrar; try registrar.add(Mode(\"probe\"))",
                nil, "registers the mode 'late' outside of its register function"
            ),
        ] as [(String, String?, String?)])
    func registersNothing(_ body: String, _ refusal: String?, _ summary: String?) throws {
        _ = try make("mode", "swift")
        let project = directory.file("project")
        try directory.write(
            "project/module.swift",
            """
            import BatonRuntime
            nonisolated(unsafe) var late: ModuleRegistrar?
            @_cdecl("baton_module_query")
            public func query() -> UnsafeRawPointer {
                ModuleDescriptor.make(kind: "mode", name: "probe", version: "1") { registrar throws(VMMError) in
                    \(body)
                }
            }
            final class Mode: CprMode {
                let name: String
                let promises: CprModePromises = []
                init(_ name: String) { self.name = name }
                var summary: String {
                    guard let late else { return "a mode" }
                    do throws(VMMError) { try late.add(Mode("late")) } catch { return error.message }
                    return "added"
                }
            }
            """)
        _ = try ChildProcess.run(["make", "-s", "-B", "-C", project, "CC=clang"], by: .seconds(300))
        let process = try ChildProcess(
            ["\(prefix)/bin/baton", "-cpr-enable", "help"], environment: ["BATON_MODULE_PATH": project])
        #expect(try process.waitForExit() == .status(0))
        #expect(process.output.contains("  restart "))
        #expect(process.output.contains("  probe ") == (refusal == nil))
        #expect(!process.output.contains("  other ") && !process.output.contains("  late "))
        if let refusal { #expect(process.errors.contains(refusal), "\(process.errors)") }
        if let summary { #expect(process.output.contains(summary), "\(process.output)") }
    }

    // MARK: Another runtime

    private func refusal(_ module: String) throws -> String {
        let process = try ChildProcess(["\(prefix)/bin/baton", "-module", module, "-machine", "virt,dumpdtb=/dev/null"])
        #expect(try process.waitForExit() == .status(1))
        return process.errors
    }

    @Test("A Swift module of another runtime is refused with both fingerprints")
    func otherRuntime() throws {
        let module = try make("mode", "swift")
        var bytes = try Data(contentsOf: URL(fileURLWithPath: module))
        // The stamp that the module asks the runtime for, changed everywhere.
        let prefix = Data("baton_runtime_stamp_".utf8)
        let found = try #require(bytes.range(of: prefix))
        let stamp = bytes[found.upperBound...].prefix { $0 != 0 }
        let other = Data("0123456789abcdef".utf8) + stamp.dropFirst(16)
        let own = String(decoding: stamp, as: UTF8.self)
        while let place = bytes.range(of: Data(stamp)) { bytes.replaceSubrange(place, with: other) }
        try bytes.write(to: URL(fileURLWithPath: module))
        #expect(try refusal(module).contains("was built against the runtime 0123456789abcdef_release, this is \(own)"))
    }

    @Test("A C module for another ABI is refused with both numbers")
    func otherABI() throws {
        let module = try make("preserver", "c")
        let project = directory.file("project")
        let header = try String(contentsOfFile: "\(prefix)/include/baton/baton-module.h", encoding: .utf8)
        try directory.write(
            "project/baton-module.h",
            header.replacingOccurrences(of: "#define BATON_MODULE_ABI 2u", with: "#define BATON_MODULE_ABI 7u"))
        _ = try ChildProcess.run(["make", "-s", "-B", "-C", project, "CC=clang", "CFLAGS=-I."])
        #expect(try refusal(module).contains("was built for the module ABI 7, this is ABI 2"))
    }
}
