import Foundation
import TestSupport
import Testing

/// The riscv suites of kvm-unit-tests, run by baton's own command line.
///
/// The sources come from `BATON_KVM_UNIT_TESTS` (a checkout, which is not
/// written to), or are cloned once from GitLab into `.build/kvm-unit-tests`.
enum KVMUnitTests {
    private static let repository = SourceRepository(
        name: "kvm-unit-tests", commit: "1da1819e49fc4938985edca67df669099b4c87a7",
        places: ["https://gitlab.com/kvm-unit-tests/kvm-unit-tests.git"])

    /// The checkout, or why there is none.
    private static let source: Result<String, TestError> = Result {
        guard GuestBuilder.toolchain != nil else { throw TestError("the Swift toolchain has no clang and lld") }
        for tool in ["make", "bash"] where Products.find(tool) == nil { throw TestError("needs \(tool)") }
        guard readelf != nil else { throw TestError("needs readelf (Debian's binutils)") }
        return try ProcessInfo.processInfo.environment["BATON_KVM_UNIT_TESTS"]
            ?? repository.checkout(in: Products.cache("kvm-unit-tests"), as: "source")
    }.mapError { $0 as? TestError ?? TestError("\($0)") }

    /// Why they are skipped; nil when they are not. Sources that do not build are no reason, but a failure.
    static let absence: String? = {
        if case .failure(let reason) = source { return "\(reason)" }
        return nil
    }()

    /// The toolchain's, which not each has, or binutils'.
    private static let readelf: String? = {
        let own = GuestBuilder.toolchain.map { "\($0)/llvm-readelf" } ?? ""
        return FileManager.default.isExecutableFile(atPath: own) ? own : Products.find("readelf")
    }()

    /// The directory of the images, built when that is first asked for.
    static let images: Result<String, any Error> = Result {
        guard let toolchain = GuestBuilder.toolchain, let readelf else { throw TestError("no toolchain") }
        let source = try Self.source.get()
        let target = "\(try Products.cache("kvm-unit-tests"))/riscv"
        if FileManager.default.fileExists(atPath: "\(target)/sbi.flat") { return target }
        let work = try TemporaryDirectory()
        try ChildProcess.run(["cp", "-r", "\(source)/.", work.file("kut")])
        // What it takes for GNU's compiler.
        try work.write(
            "cc",
            """
            #!/bin/sh
            exec \(toolchain)/clang --target=riscv64-linux-gnu -Wno-unused-command-line-argument "$@" -Wno-error

            """)
        chmod(work.file("cc"), 0o755)
        // The sse suite stores a long into a bool, which clang takes to be never there.
        let script = """
            cd "$0" && sed -i 's/bool pending = 0;/unsigned long pending = 0;/' riscv/sbi-sse.c && \
            ./configure --arch=riscv64 --cc="$1" && make -j2 CC="$1" LD="$2/ld.lld" \
            OBJCOPY="$2/llvm-objcopy" AR="$2/llvm-ar" READELF="$3"
            """
        try ChildProcess.run(
            ["bash", "-c", script, work.file("kut"), work.file("cc"), toolchain, readelf], by: .seconds(300))
        try FileManager.default.createDirectory(atPath: target, withIntermediateDirectories: true)
        for name in ["selftest", "isa-dbltrp", "sbi"] {
            try FileManager.default.copyItem(
                atPath: work.file("kut/riscv/\(name).flat"), toPath: "\(target)/\(name).flat")
        }
        return target
    }

    static let openSBI = "/usr/lib/riscv64-linux-gnu/opensbi/generic/fw_dynamic.bin"
}

@Suite(
    "kvm-unit-tests", .serialized,
    .enabled(if: KVMUnitTests.absence == nil, "no kvm-unit-tests: \(KVMUnitTests.absence ?? "")"))
struct OfficialKVMUnitTests {
    /// What the sbi suite reads of its surroundings; the times, in microseconds,
    /// are what a loaded machine may need.
    private static let margins = """
        SBI_TIMER_MARGIN=5000000
        SBI_IPI_TIMEOUT=10000000
        SBI_HSM_TIMER_DURATION=10000000

        """
    private static let builtin = """
        SBI_SPEC_VERSION=0x3000000
        SBI_IMPL_ID=0x42
        SBI_IMPL_VERSION=1
        MVENDORID=0
        MARCHID=0
        MIMPID=0
        INVALID_ADDR_AUTO=y
        MISALIGNED_EXC_DELEG_RESET=0

        """

    @Test("have no unexpected failure with the built-in SBI", arguments: ["selftest", "isa-dbltrp", "sbi"])
    func builtinSBI(_ name: String) throws {
        try run(name, bios: "default", environment: Self.margins + Self.builtin)
    }

    @Test(
        "have no unexpected failure with Debian's OpenSBI",
        .enabled(if: FileManager.default.fileExists(atPath: KVMUnitTests.openSBI), "Debian's opensbi is not installed"),
        arguments: ["selftest", "isa-dbltrp", "sbi"])
    func openSBI(_ name: String) throws {
        try run(name, bios: KVMUnitTests.openSBI, environment: Self.margins)
    }

    private func run(_ name: String, bios: String, environment: String) throws {
        let work = try TemporaryDirectory()
        try work.write("environment", environment)
        let vmm = try ChildProcess([
            Products.baton, "-machine", "virt", "-smp", "4", "-m", "256M", "-nographic", "-bios", bios, "-kernel",
            try KVMUnitTests.images.get() + "/\(name).flat", "-initrd", work.file("environment"), "-append",
            name == "selftest" ? "foo bar baz" : "",
        ])
        let exit = try vmm.waitForExit(by: .seconds(240))
        // As under QEMU, the suite's result is in its words alone.
        #expect(exit == .status(0))
        let lines = vmm.output.split(whereSeparator: \.isNewline)
        // That loop reads the time before it looks whether the interrupt has come,
        // so one in between seems early. QEMU fails there too, now and then.
        let (races, failures) = lines.filter { $0.hasPrefix("FAIL") }.reduce(into: ([Substring](), [Substring]())) {
            if $1.contains("timer delay honored") { $0.0.append($1) } else { $0.1.append($1) }
        }
        #expect(failures.isEmpty, "\(failures.joined(separator: "\n"))")
        // 1 is success, 77 that nothing applied (it needs an extension).
        let status = lines.last { $0.hasPrefix("EXIT: STATUS=") }.map { $0.dropFirst(13) }
        #expect(
            status == "1" || (status == "77" && name == "isa-dbltrp") || (status == "3" && !races.isEmpty),
            "\(vmm.output.suffix(2000))")
    }
}
