import BatonRuntime
import Foundation
import TestSupport
import Testing

/// Modules made for each test with the C compiler, or copied from those that
/// were built. One at a time: the loader is for one thread.
@Suite(.oneThread) struct ModuleLoaderTests {
    let directory: TemporaryDirectory
    let loader: ModuleLoader

    init() throws {
        directory = try TemporaryDirectory()
        loader = ModuleLoader(registry: ModuleRegistry(), directories: [directory.path])
    }

    /// Compiles C to a shared object with the name of a module.
    private func compile(_ fileName: String, _ source: String) throws -> String {
        let compiler = try #require(Products.find("clang") ?? Products.find("cc"), "no C compiler")
        let input = try directory.write("module.c", source)
        let output = directory.file(fileName)
        _ = try ChildProcess.run([compiler, "-shared", "-fPIC", "-o", output, input])
        return output
    }

    /// C source of a module whose descriptor has the given fields.
    private func source(
        magic: String = "0x444f4d4e4f544142ull", abi: Int = 2, kind: String = "mode", name: String = "probe",
        fingerprint: String = "\(runtimeFingerprint)", capabilities: Int = 0, register: String = "reg"
    ) -> String {
        """
        #include <stdint.h>
        struct descriptor {
            uint64_t magic; uint32_t size, abi;
            const char *kind, *name, *version, *fingerprint;
            uint64_t capabilities;
            int32_t (*reg)(void *);
        };
        int32_t reg(void *registrar) { (void)registrar; return 0; }
        int32_t failing(void *registrar) { (void)registrar; return 7; }
        static struct descriptor d = { \(magic), sizeof d, \(abi), "\(kind)", "\(name)", "1", "\(fingerprint)",
                                       \(capabilities), \(register) };
        const void *baton_module_query(void) { return &d; }
        """
    }

    private func refusal(_ path: String) -> String { loader.refusal(of: path) }

    private func copyOfRestart(_ name: String = "libmode-restart.so") throws -> String {
        try directory.copyOfRestart(name)
    }

    @Test func aModuleBuiltWithThisRuntimeRegistersItsMode() throws {
        _ = try copyOfRestart()
        #expect(loader.discover().map(\.name) == ["restart"])
        try loader.require(kind: "mode", name: "restart")
        #expect(loader.registry.mode("restart")?.name == "restart")
        #expect(loader.registry.origin(kind: "mode", name: "restart") == directory.file("libmode-restart.so"))
    }

    @Test func aMissingModuleIsRefusedWithAListOfThoseThatAreThere() throws {
        _ = try copyOfRestart()
        do {
            try loader.require(kind: "mode", name: "rewind")
            Issue.record("loaded")
        } catch {
            #expect(error.message == "there is no mode module 'rewind'")
            #expect(error.hint?.contains("restart") == true)
        }
        #expect(refusal(directory.file("mode-none.so")).contains("No such file"))
    }

    @Test func aNameCannotLeaveTheModuleDirectories() throws {
        _ = try copyOfRestart("sub/libmode-restart.so")
        #expect(throws: VMMError.self) { try loader.require(kind: "mode", name: "x/../../sub/libmode-restart") }
        #expect(loader.registry.modes.isEmpty)
    }

    @Test func aModuleOfAnotherRuntimeIsRefusedWithBothStamps() throws {
        let path = try compile("mode-probe.so", source(fingerprint: "0123456789abcdef_release"))
        let text = refusal(path)
        #expect(text.contains("was built against the runtime 0123456789abcdef_release, this is \(runtimeFingerprint)"))
    }

    @Test func anotherRuntimesStampSymbolIsRefusedBeforeTheModuleIsMapped() throws {
        let witness = directory.file("ran")
        let path = try compile(
            "mode-probe.so",
            source() + """

                #include <fcntl.h>
                extern void baton_runtime_stamp_feedfacefeedface_release(void);
                void use(void) { baton_runtime_stamp_feedfacefeedface_release(); }
                __attribute__((constructor)) static void ran(void) { open("\(witness)", O_CREAT | O_WRONLY, 0600); }
                """)
        #expect(refusal(path).contains("was built against the runtime feedfacefeedface_release"))
        #expect(!FileManager.default.fileExists(atPath: witness))
    }

    @Test func aFileThatIsNotAModuleIsRefused() throws {
        #expect(
            refusal(try directory.write("mode-text.so", String(repeating: "text ", count: 100))).contains(
                "is not a 64-bit little-endian ELF file"))
        #expect(refusal(try directory.write("mode-empty.so", "")).contains("is not a Baton module"))
        #expect(refusal(try compile("mode-other.so", "int x;")).contains("does not export baton_module_query"))
        #expect(refusal(try compile("notes.so", source())).contains("is not named as a module"))
        #expect(refusal(try compile("mode-probe.so", source(magic: "1"))).contains("wrong magic"))
    }

    @Test func aModuleForAnotherArchitectureIsRefused() throws {
        let path = try copyOfRestart()
        var bytes = try Data(contentsOf: URL(fileURLWithPath: path))
        bytes[18] = 183  // EM_AARCH64
        try bytes.write(to: URL(fileURLWithPath: path))
        #expect(refusal(path).contains("is for another architecture (ELF machine 183"))
    }

    @Test func aModuleWithAnotherABIOrUnknownNeedsIsRefused() throws {
        #expect(refusal(try compile("mode-probe.so", source(abi: 99))).contains("module ABI 99"))
        #expect(
            refusal(try compile("mode-needy.so", source(name: "needy", capabilities: 4))).contains("needs capabilities")
        )
        #expect(refusal(try compile("mode-nameless.so", source(name: "other"))).contains("not what its file name says"))
        #expect(
            refusal(try compile("mode-null.so", source(name: "null", register: "0"))).contains("no register function"))
        #expect(
            refusal(try compile("mode-fails.so", source(name: "fails", register: "failing"))).contains(
                "failed to register (status 7)"))
        #expect(loader.loaded.isEmpty)
    }

    @Test func aNameIsRegisteredOnce() throws {
        let first = try copyOfRestart("a/libmode-restart.so")
        let second = try copyOfRestart("b/libmode-restart.so")
        try loader.load(path: first)
        // The same file again is no error; another file with the same names is.
        try loader.load(path: first)
        #expect(refusal(second).contains("registers the mode 'restart', which is registered already"))
        #expect(loader.registry.modes.count == 1)
    }

    @Test func aFileOrDirectoryThatOthersMayWriteIsRefused() throws {
        let path = try copyOfRestart("open/libmode-restart.so")
        try FileManager.default.setAttributes([.posixPermissions: 0o777], ofItemAtPath: directory.file("open"))
        #expect(refusal(path).contains("the directory '\(directory.file("open"))' is writable by everyone"))
        try FileManager.default.setAttributes([.posixPermissions: 0o755], ofItemAtPath: directory.file("open"))
        try FileManager.default.setAttributes([.posixPermissions: 0o666], ofItemAtPath: path)
        #expect(refusal(path).contains("'\(path)' is writable by everyone"))
        try FileManager.default.setAttributes([.posixPermissions: 0o644], ofItemAtPath: path)
        #expect(refusal(path) == "loaded")
    }

    @Test func everyTruncationOfAModuleIsRefusedAndNeverCrashes() throws {
        let whole = try Data(contentsOf: URL(fileURLWithPath: try copyOfRestart("whole/libmode-restart.so")))
        // The symbol table and all it needs lie in front of the section table
        // at the end, so every cut loses something that is needed.
        for length in stride(from: 0, to: whole.count, by: whole.count / 40) {
            let path = directory.file("libmode-restart.so")
            try whole.prefix(length).write(to: URL(fileURLWithPath: path))
            #expect(refusal(path) != "loaded", "cut at \(length)")
        }
    }

    /// An object's module is known by what its file says, before any of its code runs.
    @Test func theModuleOfAnObjectIsTheOneThatSaysSo() throws {
        _ = try compile("device-first.so", source(kind: "device", name: "first"))
        _ = try compile(
            "preserver-second.so",
            source(kind: "preserver", name: "second") + "void baton_module_provides_object_a_b(void) {}")
        #expect(try loader.objectType("a") == nil)
        #expect(loader.loaded.isEmpty)
        // It is loaded, and turns out not to provide what it says.
        #expect(try loader.objectType("a-b") == nil)
        #expect(loader.loaded.map(\.name) == ["second"])
    }

    /// Built against sources that have something which this runtime lacks, in whatever floor.
    @Test func aSymbolThatTheRuntimeLacksMeansAnotherBaton() throws {
        let missing = #"extern void missing(void) __asm__("$s12BatonMachine5ExtrayyF");"#
        let use = "void use(void) { missing(); }"
        let text = refusal(try compile("mode-probe.so", source() + missing + use))
        #expect(text.contains("cannot be loaded: undefined symbol: $s12BatonMachine5ExtrayyF"))
        #expect(text.contains("The module was built against another Baton: rebuild it."))
    }
}
