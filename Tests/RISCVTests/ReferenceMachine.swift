import Foundation
import InstructionSets
import TestSupport
import Testing

/// A qemu-system-riscv64, whose harts are what Baton's are compared with.
struct ReferenceMachine: Sendable, CustomTestStringConvertible {
    let command: [String]
    let version: (major: Int, minor: Int)
    var testDescription: String { "QEMU \(version.major).\(version.minor)" }

    /// Debian 12's and 13's, with which the suites were written: only for these must each exception be met.
    var isKnown: Bool { version == (7, 2) || version == (10, 0) }
    /// Whether it has all that `-cpu max` has here.
    var hasAll: Bool { version >= (10, 0) }

    private init?(_ command: [String]) {
        guard let text = try? ChildProcess.run(command + ["-version"]) else { return nil }
        let word = text.split(separator: " ").first { $0.first?.isNumber == true } ?? ""
        let numbers = word.split(separator: ".").compactMap { Int($0) }
        guard numbers.count >= 2 else { return nil }
        (self.command, version) = (command, (numbers[0], numbers[1]))
    }

    /// `BATON_QEMU_RISCV64`, else the one in PATH.
    static let installed: ReferenceMachine? = {
        let given = ProcessInfo.processInfo.environment["BATON_QEMU_RISCV64"]
        guard let command = given ?? Products.find("qemu-system-riscv64") else { return nil }
        return ReferenceMachine([command])
    }()
    static let absence: String? =
        !GuestBuilder.isAvailable
        ? "needs clang and ld.lld of the Swift toolchain"
        : installed == nil ? "needs qemu-system-riscv64 (Debian's qemu-system-misc or qemu-system-riscv)" : nil

    /// One that has the newer extensions: the installed one, or one of a later Debian from the project's cache.
    static let recent: ReferenceMachine? = {
        if let installed, installed.hasAll { return installed }
        guard let command = QEMU.command ?? Products.laterDebian("qemu-system-riscv64"),
            let found = ReferenceMachine(command), found.hasAll
        else { return nil }
        return found
    }()
    static let recentAbsence: String? =
        absence ?? (recent == nil ? "needs qemu-system-riscv64 10.0 or later, installed or of a later Debian" : nil)
    /// Those that there are.
    static let all: [ReferenceMachine] = {
        guard let installed else { return [] }
        guard !installed.hasAll, let recent else { return [installed] }
        return [installed, recent]
    }()

    /// `-cpu` for both: all extensions that QEMU has and Baton has, and no others. Before QEMU 10 these are what harts
    /// had before there were choices.
    func processors(_ program: ReferenceProgram) throws -> (qemu: String, baton: String) {
        var processor = try RISCVProcessor("max" + program.flags.map { "," + $0 }.joined())
        guard hasAll else {
            var options = [
                "rv64", "h=false", "v=false", "zbc=false", "zba=true", "zbb=true", "zbs=true", "sstc=true",
                "debug=false", "pmu-num=29",
            ]
            if version >= (8, 0) { options += ["svadu=true", "zawrs=false", "svinval=false", "sv57=false"] }
            if version >= (8, 1) { options += ["zicbom=false", "zicboz=false", "zfa=false"] }
            processor = try RISCVProcessor(
                "max," + Self.flags(RISCVProcessor.original.union(.zihpm)).joined(separator: ","))
            return (options.joined(separator: ","), processor.text)
        }
        // No triggers; hpmcounter3 to 31, which Baton has as zeroes.
        let options = ["rv64", "h=false", "v=false", "debug=false", "pmu-mask=0xfffffff8"]
        return ((options + Self.flags(processor.extensions)).joined(separator: ","), processor.text)
    }

    /// Every property of `-cpu`, on or off.
    private static func flags(_ extensions: RISCVExtensions) -> [String] {
        RISCVProcessor.properties(of: "max").map { property in
            let isOn = RISCVExtensions(name: property.name).map { extensions.isSuperset(of: $0) } ?? false
            return "\(property.name)=\(isOn ? "on" : "off")"
        }
    }

    /// Runs a program on both, with its options.
    /// - Parameter asked: a case whose registers are to be kept.
    static func run(_ program: ReferenceProgram, on reference: ReferenceMachine, asked: Int? = nil) throws
        -> (reference: ReferenceProgram.Outcome, baton: ReferenceProgram.Outcome)
    {
        let directory = try TemporaryDirectory()
        let engine = try ReferenceProgram.engine()
        func start(_ name: String, _ command: [String]) throws -> ChildProcess {
            let ram = directory.file(name)
            try program.write(to: ram, asked: asked)
            let size = ReferenceProgram.ramSize >> 20
            return try ChildProcess(
                command + [
                    "-object", "memory-backend-file,id=ram,size=\(size)M,mem-path=\(ram),share=on", "-m", "\(size)M",
                    "-bios", "none", "-kernel", engine, "-nodefaults", "-serial", "none", "-monitor", "none",
                ] + program.options)
        }
        let processors = try reference.processors(program)
        let qemu = try start(
            "qemu",
            reference.command + [
                "-M", "virt,memory-backend=ram" + program.machine, "-cpu", processors.qemu, "-display", "none",
                "-global", "virtio-mmio.force-legacy=off",
            ])
        let baton = try start(
            "baton", [Products.baton, "-M", "virt,memory-backend=ram" + program.machine, "-cpu", processors.baton])
        for (process, name) in [(qemu, "qemu"), (baton, "baton")] {
            let exit: ChildProcess.Exit
            do {
                exit = try process.waitForExit(by: .seconds(300))
            } catch {
                let done = try ReferenceProgram.Outcome(path: directory.file(name)).done
                throw TestError("\(name) does not end; it is at \(program.describe(done)): \(process.report)")
            }
            let done = try ReferenceProgram.Outcome(path: directory.file(name)).done
            guard exit == .status(0), done == program.caseCount else {
                throw TestError(
                    "\(name) ended with \(exit) after \(done) of \(program.caseCount) cases: \(process.report)")
            }
        }
        return (
            try ReferenceProgram.Outcome(path: directory.file("qemu")),
            try ReferenceProgram.Outcome(path: directory.file("baton"))
        )
    }
}
