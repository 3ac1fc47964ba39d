import Foundation
import TestSupport

/// Debian's qemu-system-riscv64, whose harts are what Baton's are compared with.
struct ReferenceMachine {
    let command: String
    let version: (major: Int, minor: Int)

    /// Debian 12's and 13's, with which the suites were written: only for these must each exception be met.
    var isKnown: Bool { version == (7, 2) || version == (10, 0) }

    /// `BATON_QEMU_RISCV64`, else the one in PATH.
    static let installed: ReferenceMachine? = {
        let given = ProcessInfo.processInfo.environment["BATON_QEMU_RISCV64"]
        guard let command = given ?? Products.find("qemu-system-riscv64"),
            let text = try? ChildProcess.run([command, "-version"])
        else { return nil }
        let word = text.split(separator: " ").first { $0.first?.isNumber == true } ?? ""
        let numbers = word.split(separator: ".").compactMap { Int($0) }
        guard numbers.count >= 2 else { return nil }
        return ReferenceMachine(command: command, version: (numbers[0], numbers[1]))
    }()
    static let absence: String? =
        !GuestBuilder.isAvailable
        ? "needs clang and ld.lld of the Swift toolchain"
        : installed == nil ? "needs qemu-system-riscv64 (Debian's qemu-system-misc or qemu-system-riscv)" : nil

    /// The extensions that Baton's harts have (`BoardTree`), and no others.
    var processor: String {
        var options = ["rv64", "h=false", "v=false", "zbc=false", "zba=true", "zbb=true", "zbs=true", "sstc=true"]
        // No triggers; hpmcounter3 to 31, which Baton has as zeroes.
        options += ["debug=false", version >= (9, 0) ? "pmu-mask=0xfffffff8" : "pmu-num=29"]
        if version >= (8, 0) { options += ["svadu=true", "zawrs=false", "svinval=false", "sv57=false"] }
        if version >= (8, 1) { options += ["zicbom=false", "zicboz=false", "zfa=false"] }
        return options.joined(separator: ",")
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
        let qemu = try start(
            "qemu",
            [
                reference.command, "-M", "virt,memory-backend=ram" + program.machine, "-cpu", reference.processor,
                "-display", "none", "-global", "virtio-mmio.force-legacy=off",
            ])
        let baton = try start("baton", [Products.baton, "-M", "virt,memory-backend=ram" + program.machine])
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
