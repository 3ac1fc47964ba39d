import Foundation
import TestSupport
import Testing

/// The official riscv-tests: found or fetched, and built, when the tests run.
/// Nothing of theirs is part of this repository.
///
/// They come from `BATON_RISCV_TESTS` (a checkout with `env/` inside), or are
/// cloned once from GitHub into `.build/riscv-tests`.
enum OfficialTests {
    struct Case: Sendable, CustomTestStringConvertible {
        let suite: String
        let name: String
        /// `p`: physical memory; `v`: under page tables that come and go.
        let environment: String
        var testDescription: String { "\(suite)-\(environment)-\(name)" }
    }

    private static let suites = [
        "rv64ui", "rv64um", "rv64ua", "rv64uf", "rv64ud", "rv64uc", "rv64mi", "rv64si", "rv64uzba", "rv64uzbb",
        "rv64uzbs", "rv64uzbc", "rv64uzicond", "rv64mzicbo", "rv64ssvnapot",
    ]
    private static let tests = SourceRepository(
        name: "riscv-tests", commit: "34e6b6d1e7936b526075432fb730d89148623484",
        places: ["https://github.com/riscv-software-src/riscv-tests"])
    private static let environment = SourceRepository(
        name: "riscv-test-env", commit: "a1c373ec89a3500630bafabf406108a8fc568bcc",
        places: ["https://github.com/riscv/riscv-test-env"])

    /// Every test there is, or why there are none.
    static let all: Result<[Case], TestError> = Result {
        guard GuestBuilder.isAvailable else { throw TestError("the Swift toolchain has no clang and lld") }
        let source = try Self.source.get()
        return try suites.flatMap { try cases(of: $0, in: source) }
    }.mapError { $0 as? TestError ?? TestError("\($0)") }

    static var cases: [Case] { (try? all.get()) ?? [] }

    /// Why they are skipped; nil when they are not.
    static let absence: String? = {
        if case .failure(let reason) = all { return "\(reason)" }
        return nil
    }()

    private static let source: Result<String, any Error> = Result {
        if let given = ProcessInfo.processInfo.environment["BATON_RISCV_TESTS"] { return given }
        let cache = try Products.cache("riscv-tests")
        let source = try tests.checkout(in: cache, as: "source")
        _ = try environment.checkout(in: cache, as: "source/env")
        return source
    }

    /// Reads the names from a suite's make fragment.
    private static func cases(of suite: String, in source: String) throws -> [Case] {
        let fragment = try String(contentsOfFile: "\(source)/isa/\(suite)/Makefrag", encoding: .utf8)
            .replacingOccurrences(of: "\\\n", with: " ")
        let hasVirtual = fragment.contains("\(suite)_v_tests")
        var result: [Case] = []
        for line in fragment.split(separator: "\n") {
            let words = line.split(whereSeparator: { $0 == " " || $0 == "\t" })
            guard words.count > 2, words[0] == "\(suite)_sc_tests", words[1].hasSuffix("=") else { continue }
            for name in words.dropFirst(2) {
                result.append(Case(suite: suite, name: String(name), environment: "p"))
                if hasVirtual { result.append(Case(suite: suite, name: String(name), environment: "v")) }
            }
        }
        guard !result.isEmpty else { throw TestError("no tests in \(source)/isa/\(suite)/Makefrag") }
        return result
    }

    // MARK: Building

    /// Builds a test, or finds it in the cache.
    /// - Returns: the path of the ELF file.
    static func build(_ test: Case) throws -> String {
        guard let toolchain = GuestBuilder.toolchain else { throw TestError("no toolchain") }
        let source = try Self.source.get()
        let target = try Products.cache("riscv-tests/elf") + "/\(test.testDescription)"
        if FileManager.default.fileExists(atPath: target) { return target }

        let work = try TemporaryDirectory()
        let environment = "\(source)/env/\(test.environment)"
        let script = try String(contentsOfFile: "\(environment)/link.ld", encoding: .utf8)
        // GNU ld knows these names, lld does not.
        try work.write("link.ld", script.replacingOccurrences(of: "SHF_ALLOC | SHF_EXECINSTR", with: "7"))
        let extensions = [
            "rv64uzba": "_zba", "rv64uzbb": "_zbb", "rv64uzbs": "_zbs", "rv64uzbc": "_zbc", "rv64uzicond": "_zicond",
        ]
        let compiler =
            [
                "\(toolchain)/clang", "--target=riscv64-unknown-elf", "-mabi=lp64d", "-mcmodel=medany", "-static",
                "-march=rv64g" + (extensions[test.suite] ?? ""), "-fvisibility=hidden", "-nostdlib",
                "-fuse-ld=lld", "-T", work.file("link.ld"), "-w", "-I\(source)/isa/macros/scalar", "-I\(environment)",
            ]
        let file = "\(source)/isa/\(test.suite)/\(test.name).S"
        let staged = work.file("test.elf")
        if test.environment == "v" {
            try work.write("string.h", stringHeader)
            try work.write("ctype.h", "")
            try work.write("stdio.h", "")
            // Any number seeds the order of the pages.
            let entropy = test.testDescription.utf8.reduce(1) { ($0 &* 31 &+ UInt32($1)) & 0xfff_ffff }
            try ChildProcess.run(
                compiler + [
                    "-DENTROPY=\(entropy)", "-std=gnu99", "-O2", "-ffreestanding", "-I\(work.path)",
                    "\(environment)/entry.S", "\(environment)/string.c", "\(environment)/vm.c", file, "-o", staged,
                ])
        } else {
            // clang's assembler refuses that a symbol becomes both weak and
            // global, as handlers do.
            let text = try ChildProcess.run(compiler + ["-E", file])
            let kept = text.split(separator: "\n", omittingEmptySubsequences: false).map { line in
                line.replacingOccurrences(of: ".global mtvec_handler", with: "")
                    .replacingOccurrences(of: ".globl mtvec_handler", with: "")
                    .replacingOccurrences(of: ".global stvec_handler", with: "")
                    .replacingOccurrences(of: ".globl stvec_handler", with: "")
            }
            try work.write("test.s", kept.joined(separator: "\n"))
            try ChildProcess.run(compiler + [work.file("test.s"), "-o", staged])
        }
        try? FileManager.default.moveItem(atPath: staged, toPath: target)
        return target
    }

    /// What env/v expects of a C library's headers; it has the functions.
    private static let stringHeader = """
        #pragma once
        #include <stddef.h>
        void *memcpy(void *, const void *, size_t);
        void *memset(void *, int, size_t);
        int memcmp(const void *, const void *, size_t);
        size_t strlen(const char *);
        int strcmp(const char *, const char *);
        char *strcpy(char *, const char *);
        long atol(const char *);
        static inline int isspace(int c) { return c == ' ' || (c >= 9 && c <= 13); }
        static inline int isdigit(int c) { return c >= '0' && c <= '9'; }
        """
}
