import BatonRuntime
import Foundation
import TestSupport
import Testing

/// Foreign modules compiled from C for each test, with what can be wrong with
/// one. One at a time: the loader is for one thread.
@Suite(.oneThread, .enabled(if: Products.find("clang") != nil, "needs the toolchain's clang"))
struct ForeignModuleTests {
    let directory: TemporaryDirectory
    let loader: ModuleLoader

    init() throws {
        directory = try TemporaryDirectory()
        loader = ModuleLoader(registry: ModuleRegistry(), directories: [directory.path, Products.directory])
    }

    /// The C source of a preserver, good but for what is given.
    private func source(
        kind: String = "preserver", methods: String = "", commands: String = "", events: String = "",
        functions: String = "", fields: String = ""
    ) -> String {
        """
        #include <baton-module.h>
        static int32_t ok(struct baton_host *host) { (void)host; return 0; }
        \(functions)
        static const struct baton_method methods[] = {
            \(methods.contains("\"save\"") ? "" : "BATON_METHOD(\"save\", \"i(h)\", ok),")
            \(methods.contains("\"load\"") ? "" : "BATON_METHOD(\"load\", \"i(h)\", ok),")
            \(methods)
        };
        static const struct baton_command commands[] = { {"unused", "i(h)", (baton_function)ok, 0}, \(commands) };
        static const struct baton_event events[] = { {"UNUSED", "", 0}, \(events) };
        const struct baton_module_descriptor *baton_module_query(void);
        const struct baton_module_descriptor *baton_module_query(void) {
            static const struct baton_module_descriptor d = {
                .magic = BATON_MODULE_MAGIC, .size = sizeof d, .abi = BATON_MODULE_ABI,
                .kind = "\(kind)", .name = "probe", .version = "1",
                .methods = methods, .method_count = BATON_COUNT(methods),
                .commands = commands, .command_count = BATON_COUNT(commands),
                .events = events, .event_count = BATON_COUNT(events), \(fields)
            };
            return &d;
        }
        """
    }

    private func compile(_ source: String, kind: String = "preserver") throws -> String {
        let compiler = try #require(Products.find("clang"))
        let input = try directory.write("module.c", source)
        let output = directory.file("\(kind)-probe.so")
        _ = try ChildProcess.run([
            compiler, "-std=c11", "-Wall", "-Wno-initializer-overrides", "-shared", "-fPIC", "-I", Products.headers,
            "-o", output, input,
        ])
        return output
    }

    private func refusal(_ source: String, kind: String = "preserver") throws -> String {
        do {
            try loader.load(path: try compile(source, kind: kind))
            return "loaded"
        } catch let error as VMMError {
            return error.description
        }
    }

    @Test func aGoodModuleRegistersItsPreserverAndCommands() throws {
        #expect(try refusal(source()) == "loaded")
        #expect(loader.registry.preservers.map(\.name) == ["probe"])
        let commands = CommandRegistry()
        try loader.registry.installCommands(commands)
        #expect(commands.qmp["unused"] != nil && commands.events["UNUSED"] != nil)
        // One that the core has is refused, in the module's name.
        let error = #expect(throws: VMMError.self) { try loader.registry.installCommands(commands) }
        #expect(error?.message == "module 'preserver-probe': QMP command 'unused' is already registered")
    }

    @Test(arguments: [
        // Methods.
        (#"BATON_METHOD("save", "i(hx)", ok)"#, "method 'save': the signature 'i(hx)' has the unknown letter 'x'"),
        (#"BATON_METHOD("save", "i(hs)", ok)"#, "the method 'save' has the signature 'i(hs)', not 'i(h)'"),
        (#"BATON_METHOD("save", "ih", ok)"#, "the signature 'ih' has not the form RESULT(ARGUMENTS)"),
        (#"BATON_METHOD("save", "", ok)"#, "the signature '' has not the form RESULT(ARGUMENTS)"),
        (#"BATON_METHOD("save", 0, ok)"#, "the signature '' has not the form RESULT(ARGUMENTS)"),
        (#"BATON_METHOD("save", "i(h>)", ok)"#, "the method 'save' has the signature 'i(h>)', not 'i(h)'"),
        (#"BATON_METHOD("save", "i(h", ok)"#, "the signature 'i(h' has not the form"),
        (#"BATON_METHOD("save", "i(v)", ok)"#, "the signature 'i(v)' has 'v' as an argument"),
        (#"BATON_METHOD("save", "i(h?)", ok)"#, "the signature 'i(h?)' has a '?' with no letter behind it"),
        (#"BATON_METHOD("save", "i(h>i>i)", ok)"#, "the signature 'i(h>i>i)' has more than one '>'"),
        (#"BATON_METHOD("save", "i(h>?i)", ok)"#, "the signature 'i(h>?i)' has an optional result"),
        (#"{"save", "i(h)", 0}"#, "the method 'save' has no function"),
        (#"{0, "i(h)", (baton_function)ok}"#, "method 2 has no name"),
        (#"BATON_METHOD("exec", "i(h)", ok), BATON_METHOD("exec", "i(h)", ok)"#, "the method 'exec' is there twice"),
    ])
    func aMethodThatCannotBeCalledIsRefused(_ method: String, _ expected: String) throws {
        let text = try refusal(source(methods: method))
        #expect(text.contains(expected), "\(text)")
        #expect(loader.registry.preservers.isEmpty && loader.loaded.allSatisfy { $0.kind == "foreign" })
    }

    @Test(arguments: [
        (#"{"Upper", "i(h)", (baton_function)ok, 0}"#, "a command's name has the characters a-z"),
        (#"{"", "i(h)", (baton_function)ok, 0}"#, "a command's name has the characters a-z"),
        (#"{0, "i(h)", (baton_function)ok, 0}"#, "command 1 has no name"),
        (#"{"c", "i(h)", 0, 0}"#, "command 'c': it has no function"),
        (#"{"c", "v(h)", (baton_function)ok, 0}"#, "the signature 'v(h)' does not begin with 'i(h'"),
        (#"{"c", "i(s)", (baton_function)ok, 0}"#, "the signature 'i(s)' does not begin with 'i(h'"),
        (#"{"c", "i(hZ)", (baton_function)ok, 0}"#, "has the unknown letter 'Z'"),
        (#"{"c", "i(hh)", (baton_function)ok, one}"#, "has a second 'h'"),
        (#"{"c", "i(h>f)", (baton_function)ok, one}"#, "has an 'f' as a result"),
        (#"{"c", "i(hi)", (baton_function)ok, 0}"#, "it has no names for its arguments and results"),
        (#"{"c", "i(hii)", (baton_function)ok, same}"#, "the name 'a' is there twice"),
        (#"{"c", "i(hi)", (baton_function)ok, nameless}"#, "argument or result 1 has no name"),
        (#"{"c", "i(hs)", (baton_function)ok, range}"#, "'a' has a range, which is for integers only"),
        (#"{"c", "i(hi)", (baton_function)ok, empty}"#, "the range of 'a' is empty: 5 to 1"),
        (#"{"c", "i(hI)", (baton_function)ok, negative}"#, "the range of 'a' is empty: -1 to 1"),
        (#"{"unused", "i(h)", (baton_function)ok, 0}"#, "registers the QMP command 'unused' twice"),
        (#"{"c", "i(hiiiiiiiiiiiiiiiiiiiii)", (baton_function)ok, one}"#, "it has more than 20 arguments and results"),
    ])
    func aCommandThatCannotBeCalledIsRefused(_ command: String, _ expected: String) throws {
        let tables = """
            static const struct baton_parameter one[] = {{"a"}}, same[] = {{"a"}, {"a"}}, nameless[] = {{0}},
                range[] = {{"a", 1, 2}}, empty[] = {{"a", 5, 1}}, negative[] = {{"a", -1, 1}};
            static const void *tables[] __attribute__((used)) = {one, same, nameless, range, empty, negative};
            """
        let text = try refusal(source(commands: command, functions: tables))
        #expect(text.contains(expected), "\(text)")
        #expect(loader.registry.preservers.isEmpty)
    }

    @Test func anEventThatCannotBeSentIsRefused() throws {
        #expect(try refusal(source(events: #"{"lower", "", 0}"#)).contains("an event's name has the characters A-Z"))
        #expect(try refusal(source(events: #"{"E", "f", 0}"#)).contains("an event cannot carry"))
        #expect(try refusal(source(events: #"{"UNUSED", "", 0}"#)).contains("registers the QMP event 'UNUSED' twice"))
    }

    @Test func whatAModuleLacksOrCannotBeIsSaid() throws {
        let noLoad = source(methods: #"BATON_METHOD("load", "i(h)", ok)"#)
            .replacingOccurrences(of: #"BATON_METHOD("load", "i(h)", ok)"#, with: "")
        #expect(try refusal(noLoad).contains("the method 'load' is missing, which a preserver must have"))
        #expect(
            try refusal(source(kind: "accel"), kind: "accel").contains("a foreign module cannot be of the kind 'accel'")
        )
        #expect(try refusal(source(kind: "mode"), kind: "mode").contains("the method 'promises' is missing"))
        #expect(try refusal(source(fields: ".register_module = (void *)ok")).contains("it has a register function"))
        #expect(try refusal(source(fields: ".size = 16")).contains("has a descriptor of 16 bytes"))
        #expect(try refusal(source(fields: ".abi = 9")).contains("was built for the module ABI 9, this is ABI 2"))
        #expect(try refusal(source(fields: ".magic = 1")).contains("wrong magic"))
        #expect(
            try refusal(source(fields: ".capabilities = 8")).contains("needs capabilities that this Baton lacks (0x8)"))
        #expect(
            try refusal(source(fields: ".method_count = 1 << 20")).contains("the table of methods has 1048576 entries"))
        let null = "#include <baton-module.h>\nconst void *baton_module_query(void) { return 0; }"
            .replacingOccurrences(of: "#include <baton-module.h>\n", with: "")
        #expect(try refusal(null).contains("its query function returns no descriptor"))
    }

    @Test func methodsOfALaterBatonAreIgnoredUnlessTheyAreNeeded() throws {
        let later = #"BATON_METHOD("teleport", "Q(hzz)", ok)"#
        #expect(
            try refusal(source(methods: later, fields: ".capabilities = BATON_NEEDS_ALL_METHODS"))
                .contains("the method 'teleport' is unknown to this Baton, and the module needs it"))
        #expect(try refusal(source(methods: later)) == "loaded")
    }

    @Test func aFunctionThatThisBatonLacksIsNamed() throws {
        let text = try refusal(
            source(
                methods: #"BATON_METHOD("exec", "i(h)", beam)"#,
                functions: "void baton_beam_up(struct baton_host *);\n"
                    + "static int32_t beam(struct baton_host *h) { baton_beam_up(h); return 0; }"))
        #expect(text.contains("cannot be loaded: undefined symbol: baton_beam_up"))
        #expect(text.contains("function of a later Baton"))
    }

    /// What calls foreign modules is a module too, found by its kind.
    @Test func withoutWhatCallsThemForeignModulesAreRefused() throws {
        let alone = ModuleLoader(registry: ModuleRegistry(), directories: [directory.path])
        let text = alone.refusal(of: try compile(source()))
        #expect(text.contains("there is no module that calls foreign ones"))
        #expect(text.contains("Searched: \(directory.path)."))
        #expect(alone.loaded.isEmpty)
    }

    @Test func anInitThatFailsLeavesNothing() throws {
        let methods = #"BATON_METHOD("init", "i(h)", init)"#
        let cases = [
            ("baton_fail(host, \"no luck\")", "preserver-probe: no luck"),
            ("baton_fail_errno(host, \"no file\", 2)", "preserver-probe: no file: No such file or directory"),
            ("7", "preserver-probe: init failed with status 7"),
            ("-1", "preserver-probe: init failed with status -1"),
        ]
        for (result, expected) in cases {
            let text = try refusal(
                source(
                    methods: methods,
                    functions: "static int32_t init(struct baton_host *host) { (void)host; return \(result); }"))
            #expect(text.hasPrefix("module '\(directory.file("preserver-probe.so"))': \(expected)"), "\(text)")
        }
        #expect(loader.registry.preservers.isEmpty)
        let commands = CommandRegistry()
        try loader.registry.installCommands(commands)
        #expect(commands.qmp.isEmpty)
    }

    // MARK: Calls

    /// A module with one command that gets every type and gives every type back.
    private func mirror() throws -> QMPCommand {
        let text = try refusal(
            source(
                commands: #"{"mirror", "i(h?bi?I?lLdsB>biIlLdsB)", (baton_function)mirror, names}"#,
                functions: """
                    static const struct baton_parameter names[] = {
                        {"b"}, {"i", -5, 5}, {"u"}, {"l"}, {"U"}, {"d"}, {"s"}, {"x"},
                        {"rb"}, {"ri"}, {"ru"}, {"rl"}, {"rU"}, {"rd"}, {"rs"}, {"rx"}};
                    static int32_t mirror(struct baton_host *host, bool has_b, bool b, int32_t i, bool has_u, uint32_t u,
                            bool has_l, int64_t l, uint64_t U, double d, const char *s, const void *x, size_t n,
                            bool *rb, int32_t *ri, uint32_t *ru, int64_t *rl, uint64_t *rU, double *rd, const char **rs,
                            const void **rx, size_t *rn) {
                        if (i == 4) return baton_fail(host, s);
                        *rb = has_b && b; *ri = i; *ru = has_u ? u : 4000000000u; *rl = has_l ? l : -1; *rU = U; *rd = d;
                        *rs = s; *rx = x; *rn = n;
                        return 0;
                    }
                    """))
        try #require(text == "loaded")
        let commands = CommandRegistry()
        try loader.registry.installCommands(commands)
        return try #require(commands.qmp["mirror"])
    }

    /// Carries a command out as a monitor does.
    private func run(_ command: QMPCommand, _ text: String) throws -> JSON {
        let arguments = try #require(try JSON(parsing: text).objectValue)
        try QMPArguments.check(arguments, against: command.arguments)
        return try command.handler(arguments)
    }

    @Test func everyTypeGoesToTheModuleAndComesBack() throws {
        let mirror = try mirror()
        let result = try run(
            mirror,
            #"{"b": true, "i": -5, "u": 4294967295, "l": -9223372036854775808, "U": 18446744073709551615, "#
                + #""d": -2.5, "s": "grüße", "x": "AP9/"}"#)
        let expected = try JSON(
            parsing: #"{"rb": true, "ri": -5, "ru": 4294967295, "rl": -9223372036854775808, "#
                + #""rU": 18446744073709551615, "rd": -2.5, "rs": "grüße", "rx": "AP9/"}"#)
        #expect(result == expected)
        let least = try run(mirror, #"{"i": 5, "U": 0, "d": 3, "s": "", "x": ""}"#)
        let leastExpected = try JSON(
            parsing: #"{"rb": false, "ri": 5, "ru": 4000000000, "rl": -1, "rU": 0, "rd": 3.0, "rs": "", "rx": ""}"#)
        #expect(least == leastExpected)
    }

    @Test func argumentsAreRefusedInQEMUsWords() throws {
        let mirror = try mirror()
        let good = ["i": "1", "U": "1", "d": "1", "s": "\"\"", "x": "\"\""]
        func refusal(_ name: String, _ value: String?) throws -> String {
            var members = good
            members[name] = value
            let text = "{" + members.map { "\"\($0)\": \($1)" }.joined(separator: ",") + "}"
            do {
                _ = try run(mirror, text)
                return "done"
            } catch let error as VMMError {
                return error.message
            }
        }
        #expect(try refusal("i", "1") == "done")
        #expect(try refusal("i", nil) == "Parameter 'i' is missing")
        #expect(try refusal("y", "1") == "Parameter 'y' is unexpected")
        #expect(try refusal("i", "\"1\"") == "Invalid parameter type for 'i', expected: integer")
        #expect(try refusal("i", "1.5") == "Invalid parameter type for 'i', expected: integer")
        #expect(try refusal("b", "1") == "Invalid parameter type for 'b', expected: boolean")
        #expect(try refusal("d", "true") == "Invalid parameter type for 'd', expected: number")
        #expect(try refusal("s", "null") == "Invalid parameter type for 's', expected: string")
        #expect(try refusal("i", "6") == "Parameter 'i' expects an integer in the range of -5 to 5")
        #expect(try refusal("i", "2147483648") == "Parameter 'i' expects int32_t")
        #expect(try refusal("u", "-1") == "Parameter 'u' expects uint32_t")
        #expect(try refusal("u", "4294967296") == "Parameter 'u' expects uint32_t")
        #expect(try refusal("U", "-1") == "Parameter 'U' expects uint64_t")
        #expect(try refusal("U", "18446744073709551616").hasPrefix("Invalid parameter type for 'U'"))
        #expect(try refusal("l", "9223372036854775808") == "Invalid parameter type for 'l', expected: integer")
        #expect(try refusal("x", "\"A\"") == "Parameter 'x' expects base64 data")
    }

    @Test func aFailedCommandHasTheModulesNameAndWords() throws {
        let mirror = try mirror()
        let error = #expect(throws: VMMError.self) {
            _ = try run(mirror, #"{"i": 4, "U": 0, "d": 0, "s": "broken", "x": ""}"#)
        }
        #expect(error?.message == "preserver-probe: broken")
    }

    @Test func theHeaderServesCPlusPlus() throws {
        let compiler = try #require(Products.find("clang"))
        let input = try directory.write(
            "module.cc", "#include <baton-module.h>\nint main() { return sizeof(baton_module_descriptor) == 0; }\n")
        _ = try ChildProcess.run([
            compiler, "-x", "c++", "-std=c++17", "-Wall", "-Wextra", "-pedantic", "-Werror", "-fsyntax-only", "-I",
            Products.headers, input,
        ])
    }
}
