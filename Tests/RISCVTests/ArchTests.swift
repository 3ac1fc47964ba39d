import BatonRuntime
import Foundation
import TestSupport
import Testing

/// riscv-arch-test, the official architecture tests: each leaves a signature in
/// memory, which must be the one that it leaves under QEMU.
///
/// The sources come from `BATON_RISCV_ARCH_TEST` (a checkout), or are cloned
/// once from GitHub into `.build/riscv-arch-test`; programs and QEMU's
/// signatures are kept there too. Of the 960 tests of floating point that are
/// shared with RV32, one of ten runs, unless `BATON_ALL_ARCH_TESTS` is set.
enum ArchTests {
    struct Case: Sendable, CustomTestStringConvertible {
        /// Below riscv-test-suite, without the suffix.
        let name: String
        /// For clang's `-march`.
        let march: String
        let definitions: [String]
        var testDescription: String { name }
        var file: String { name.replacingOccurrences(of: "/", with: "-") }
    }

    /// What the board's device tree says of the hart, as the tests spell it.
    private static let isa =
        "RV64IMAFDCSUZicboz_Zicond_Zicsr_Zifencei_Zacas_Zfa_Zca_Zcb_Zcd_Zba_Zbb_Zbc_Zbs_Svadu"
    /// For both machines.
    static let processor = "rv64,zicond=on,zacas=on,zcb=on"
    private static let letters = Set("IMAFDC")
    private static let extensions: Set = [
        "Zicsr", "Zifencei", "Zba", "Zbb", "Zbs", "Zca", "Zcd", "Zaamo", "Zalrsc", "Svadu", "Zicboz", "Zicond",
        "Zacas", "Zfa", "Zcb", "Zbc",
    ]
    private static let groups = [
        "rv64i_m/I", "rv64i_m/M", "rv64i_m/A", "rv64i_m/F", "rv64i_m/D", "rv64i_m/C", "rv64i_m/B", "rv64i_m/Zifencei",
        "rv64i_m/Svadu", "rv64i_m/privilege", "rv64i_m/pmp64", "rv64i_m/Zicond", "rv64i_m/Zacas", "rv64i_m/CMO",
        "rv64i_m/F_Zfa", "rv64i_m/D_Zfa",
    ]
    private static let sharedGroups = ["rv32i_m/F", "rv32i_m/D"]

    /// QEMU (11.1) takes another number for x0 in what follows an amocas with rd = x0, and leaves that in the signature.
    private static let inapplicable: Set = ["rv64i_m/Zacas/src/amocas.d_64-01", "rv64i_m/Zacas/src/amocas.w-01"]

    private static let repository = SourceRepository(
        name: "riscv-arch-test", commit: "cd94912fed2aab75d7d5f115b441da0813fdce8d",
        places: ["https://github.com/riscv-non-isa/riscv-arch-test"])

    static let all: Result<[Case], TestError> = Result {
        guard GuestBuilder.isAvailable else { throw TestError("the Swift toolchain has no clang and lld") }
        guard qemu != nil else { throw TestError("no QEMU with cpr-exec to compare with") }
        let every = ProcessInfo.processInfo.environment["BATON_ALL_ARCH_TESTS"] != nil
        let shared = try sharedGroups.flatMap { try cases(of: $0) }
        return try groups.flatMap { try cases(of: $0) }
            + shared.enumerated().filter { every || $0.offset % 10 == 0 }.map(\.element)
    }.mapError { $0 as? TestError ?? TestError("\($0)") }

    static var cases: [Case] { (try? all.get()) ?? [] }
    /// Installed, or downloaded into the project's cache. Earlier ones keep bits
    /// of pmpcfg that are reserved.
    private static let qemu = QEMU.command ?? Products.laterDebian("qemu-system-riscv64")
    /// Why they are skipped; nil when they are not.
    static let absence: String? = {
        if case .failure(let reason) = all { return "\(reason)" }
        return nil
    }()

    private static let source: Result<String, any Error> = Result {
        if let given = ProcessInfo.processInfo.environment["BATON_RISCV_ARCH_TEST"] { return given }
        return try repository.checkout(in: Products.cache("riscv-arch-test"), as: "source")
    }

    private static func suite() throws -> String { try source.get() + "/riscv-test-suite" }

    // MARK: Which tests apply

    private static func cases(of group: String) throws -> [Case] {
        let directory = try "\(suite())/\(group)/src"
        let files = try FileManager.default.subpathsOfDirectory(atPath: directory).sorted()
        return try files.filter { $0.hasSuffix(".S") }.compactMap { file in
            let name = "\(group)/src/\(file.dropLast(2))"
            guard !inapplicable.contains(name) else { return nil }
            let text = try String(contentsOfFile: "\(directory)/\(file)", encoding: .utf8)
            guard let march = march(text), let definitions = definitions(text) else { return nil }
            return Case(name: name, march: march, definitions: definitions)
        }
    }

    /// From RVTEST_ISA: the first of its ISA strings that the hart has.
    private static func march(_ text: String) -> String? {
        guard let match = text.firstMatch(of: #/RVTEST_ISA\("([^"]*)"\)/#) else { return nil }
        for isa in match.1.split(separator: ",") {
            guard let parts = isa.wholeMatch(of: #/\s*RV64([A-Z]+?)_?((?:Z|Sv)[A-Za-z_]*)?\s*/#) else { continue }
            let names = (parts.2 ?? "").matches(of: #/[A-Z][a-z]+/#).map { String($0.0) }
            guard Set(parts.1).isSubset(of: letters), Set(names).isSubset(of: extensions) else { continue }
            let others = names.filter { $0 != "Zicsr" && $0 != "Svadu" }.map { "_" + $0.lowercased() }
            return "rv64" + parts.1.lowercased() + "_zicsr" + others.joined()
        }
        return nil
    }

    /// From the conditions of each RVTEST_CASE: what is defined for those that
    /// hold; nil when none does.
    private static func definitions(_ text: String) -> [String]? {
        var result: [String]?
        for match in text.matches(of: #/RVTEST_CASE\(\s*\d+\s*,\s*"/*([^"]*)"/#) {
            var holds = true
            var definitions: [String] = []
            for part in match.1.split(separator: ";").map({ $0.trimmingCharacters(in: .whitespaces) }) {
                if part.hasPrefix("check ISA:=regex("),
                    let pattern = try? Regex(String(part.dropFirst(17).dropLast()))
                {
                    holds = holds && isa.prefixMatch(of: pattern) != nil
                } else if part.hasPrefix("check hw_data_misaligned_support:=") {
                    holds = holds && part.hasSuffix("True")
                } else if part.hasPrefix("def ") {
                    definitions.append("-D" + part.dropFirst(4).filter { $0 != " " })
                }
            }
            if holds { result = (result ?? []) + definitions.filter { !(result ?? []).contains($0) } }
        }
        return result
    }

    // MARK: Building

    /// What the tests ask of a model: where the signature is, and how to end.
    static let model = """
        #define RVMODEL_DATA_BEGIN .balign 16; .global begin_signature; begin_signature:
        #define RVMODEL_DATA_END .balign 16; .global end_signature; end_signature:
        #define RVMODEL_BOOT
        #define RVMODEL_HALT li t0, \(TestEnd.address); li t1, 0x5555; sw t1, (t0); 1: j 1b;
        #define RVMODEL_IO_INIT
        #define RVMODEL_IO_WRITE_STR(_R, _STR)
        #define RVMODEL_IO_CHECK()
        #define RVMODEL_IO_ASSERT_GPR_EQ(_S, _R, _I)
        #define RVMODEL_IO_ASSERT_SFPR_EQ(_F, _R, _I)
        #define RVMODEL_IO_ASSERT_DFPR_EQ(_D, _R, _I)
        #define RVMODEL_SET_MSW_INT
        #define RVMODEL_CLR_MSW_INT
        #define RVMODEL_CLR_MTIMER_INT
        #define RVMODEL_CLR_MEXT_INT
        #define RVMODEL_SET_SSW_INT
        #define RVMODEL_CLR_SSW_INT
        #define RVMODEL_CLR_STIMER_INT
        #define RVMODEL_CLR_SEXT_INT
        #define RVMODEL_SET_VSW_INT
        #define RVMODEL_CLR_VSW_INT
        #define RVMODEL_CLR_VTIMER_INT
        #define RVMODEL_CLR_VEXT_INT

        """
    private static let linkerScript = """
        OUTPUT_ARCH(riscv)
        ENTRY(rvtest_entry_point)
        SECTIONS {
          . = 0x80000000;
          .text.init : { *(.text.init) }
          . = ALIGN(0x1000);
          .text : { *(.text) }
          . = ALIGN(0x1000);
          .data : { *(.data) *(.data.string) }
          .bss : { *(.bss) }
        }

        """

    /// Builds a test, or finds it in the cache.
    /// - Returns: the path of the ELF file.
    static func build(_ test: Case) throws -> String {
        guard let toolchain = GuestBuilder.toolchain else { throw TestError("no toolchain") }
        let target = try Products.cache("riscv-arch-test/elf") + "/\(test.file)"
        if FileManager.default.fileExists(atPath: target) { return target }
        let work = try TemporaryDirectory()
        try work.write("model_test.h", model)
        try work.write("link.ld", linkerScript)
        // One test defines a label twice; GNU's assembler refuses that too.
        let text = try String(contentsOfFile: "\(suite())/\(test.name).S", encoding: .utf8)
        try work.write("test.S", text.replacing(#/main:\s*\n(#define.*\n#define.*\n)main:/#) { "main:\n\($0.1)" })
        let precision = test.march.contains("d_zicsr") ? 64 : 32
        let hasFloat = test.march.wholeMatch(of: #/rv64[a-z]*[fd][a-z]*_.*/#) != nil
        try ChildProcess.run(
            [
                "\(toolchain)/clang", "--target=riscv64-unknown-elf", "-march=\(test.march)", "-mabi=lp64",
                "-mcmodel=medany", "-static", "-nostdlib", "-fuse-ld=lld", "-w", "-Wl,-z,norelro", "-T",
                work.file("link.ld"), "-I\(work.path)", "-I\(suite())/env", "-DXLEN=64",
                // A name that the macros compare with and nobody defines.
                "-DVmode=VSmode",
            ] + (hasFloat ? ["-DFLEN=\(precision)"] : []) + test.definitions
                + [work.file("test.S"), "-o", work.file("test.elf")])
        try? FileManager.default.moveItem(atPath: work.file("test.elf"), toPath: target)
        return target
    }

    // MARK: Running

    /// The signature that a program leaves under QEMU, from the cache or made.
    static func expectedSignature(_ elf: String, _ range: Range<Int>) throws -> Data {
        guard let command = qemu else { throw TestError("no QEMU") }
        let target = elf + ".signature"
        if let known = FileManager.default.contents(atPath: target), known.count == range.count { return known }
        let work = try TemporaryDirectory()
        let ram = work.file("ram")
        try ChildProcess.run(
            command + [
                "-machine", "virt,memory-backend=ram", "-m", "32M", "-object",
                "memory-backend-file,id=ram,size=32M,mem-path=\(ram),share=on", "-bios", "none", "-kernel", elf,
                // Without the hypervisor extension, of which the trap handler saves more.
                "-cpu", processor + ",h=false", "-display", "none", "-serial", "none", "-monitor", "none",
            ])
        let file = try FileHandle(forReadingFrom: URL(fileURLWithPath: ram))
        try file.seek(toOffset: UInt64(range.lowerBound))
        let signature = try file.read(upToCount: range.count) ?? Data()
        try signature.write(to: URL(fileURLWithPath: target), options: .atomic)
        return signature
    }
}

/// The register of the virt machine that ends it.
final class TestEnd: MMIODevice {
    static let address: UInt64 = 0x10_0000
    private(set) var wasReached = false
    func mmioRead(offset: UInt64, width: Int) -> UInt64 { 0 }
    func mmioWrite(offset: UInt64, width: Int, value: UInt64) { wasReached = wasReached || value == 0x5555 }
}

@Suite(
    "riscv-arch-test",
    .enabled(if: ArchTests.absence == nil, "no riscv-arch-test: \(ArchTests.absence ?? "")"))
struct OfficialArchTests {
    @Test("leaves the signature that it leaves under QEMU", arguments: ArchTests.cases)
    func signature(_ test: ArchTests.Case) throws {
        let path = try ArchTests.build(test)
        let elf = try ELFFile(path: path)
        let begin = try #require(elf.symbol("begin_signature"))
        let end = try #require(elf.symbol("end_signature"))
        let range = Int(begin - TestMachine.base)..<Int(end - TestMachine.base)
        let expected = try ArchTests.expectedSignature(path, range)

        let machine = try TestMachine(megabytes: 32, cpu: ArchTests.processor)
        let finisher = TestEnd()
        try machine.vm.addressSpace.map(finisher, at: TestEnd.address, size: 0x1000, name: "test")
        for segment in elf.segments where !segment.bytes.isEmpty {
            try machine.load(segment.bytes, at: segment.address)
        }
        machine.hart.setResetVector(pc: elf.entry, a0: 0, a1: 0)
        machine.reset()
        try machine.run(until: "the end of the test", seconds: 60) { finisher.wasReached }
        let found = Data(bytes: machine.ram.host + range.lowerBound, count: range.count)
        let word = (0..<range.count / 8).first { found[$0 * 8..<$0 * 8 + 8] != expected[$0 * 8..<$0 * 8 + 8] }
        #expect(found == expected, "the first word that differs is \(word ?? -1) of \(range.count / 8)")
    }

    @Test("are there to be run")
    func areThere() { #expect(ArchTests.cases.count > 300) }
}
