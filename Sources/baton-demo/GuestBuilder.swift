import ArgumentParser
import Foundation
import ProcessSupport

/// The guest programs that we build from source.
enum GuestProgram: String, CaseIterable, ExpressibleByArgument {
    /// A static Linux program that works on memory and a disk.
    case demo
    /// A bare-metal image that counts.
    case counter
    /// A bare-metal image that runs integer code and says how many instructions that took.
    case bench
    /// A bare-metal image that queues requests to a disk, and waits for them.
    case blockload
    /// A bare-metal image that counts, and works on a disk.
    case soak
    /// An ELF file for x86-64 that counts and measures its exits.
    case microvm
    /// A bare-metal x86-64 kernel that tries what KVM executes.
    case probe
}

/// Builds guests with the Swift toolchain's own clang and lld, which target
/// riscv64 and x86-64 without a cross compiler being installed.
struct GuestBuilder {
    /// The directory that holds the guests' sources.
    let sources: String

    /// Finds the sources from the place of this executable (.build/release in
    /// the project), or from the working directory.
    init() throws {
        let executable = URL(fileURLWithPath: "/proc/self/exe").resolvingSymlinksInPath()
        var candidates = [FileManager.default.currentDirectoryPath]
        var directory = executable.deletingLastPathComponent()
        while directory.path != "/" {
            candidates.append(directory.path)
            directory.deleteLastPathComponent()
        }
        let found = candidates.map { $0 + "/Tests/Guests" }
            .first { FileManager.default.fileExists(atPath: $0 + "/demo/demo.c") }
        guard let found else { throw Failure("the guests' sources (Tests/Guests) were not found; run in the project") }
        sources = found
    }

    /// - Parameters:
    ///   - machine: what a `demo` is for. The others are for one machine each.
    ///   - definitions: names that the source is to find defined.
    func build(
        _ guest: GuestProgram, for machine: GuestMachine = .virt, definitions: [String] = [], to output: String
    ) throws {
        let directory = "\(sources)/\(guest.rawValue)"
        var arguments =
            [try compiler()] + ([.probe, .microvm].contains(guest) ? .microvm : machine).compilerOptions + [
                "-ffreestanding", "-fno-builtin", "-fno-stack-protector", "-nostdlib", "-nostdinc", "-O2", "-Wall",
                "-Wextra", "-Werror", "-fuse-ld=lld", "-static", "-I\(sources)", "-o", output,
                "\(directory)/\(guest.rawValue).c",
            ] + definitions.map { "-D\($0)" }
        switch guest {
        case .demo: arguments += ["-fno-pic", "-Wl,-z,max-page-size=4096"]
        case .counter, .bench, .blockload, .soak:
            arguments += ["-fpie", "-Wl,-no-pie", "-Wl,--oformat=binary", "-Wl,-T,\(sources)/flat.ld"]
        case .microvm:
            arguments += ["-mgeneral-regs-only", "-mno-red-zone", "-fno-pic", "-Wl,-no-pie", "-Wl,--build-id=none"]
            arguments += ["-Wl,-T,\(directory)/microvm.ld"]
        case .probe: arguments += ["-fno-pic", "-mno-red-zone", "-mgeneral-regs-only", "-Wl,--image-base=0x100000"]
        }
        try Tool.require(arguments)
    }

    /// Builds a program for this machine that runs the microvm guest under KVM without a VMM.
    func buildBareLoop(to output: String) throws {
        let source = "\(sources)/\(GuestProgram.microvm.rawValue)/bare-loop.c"
        try Tool.require([try compiler(), "-O2", "-Wall", "-Wextra", "-Werror", "-o", output, source])
    }

    /// Builds the first process of the lab's guests, for Linux on this machine's CPUs, with its C library.
    func buildLabProgram(to output: String) throws {
        try buildForLab(["lab", "devices", "plugged", "edu", "memory", "registers", "time", "vsock"], to: output)
    }

    /// Builds a program for the lab's Linux that has the host's end of a guest's sockets.
    func buildVsockPeer(to output: String) throws { try buildForLab(["vsock-peer", "vsock"], to: output) }

    private func buildForLab(_ parts: [String], to output: String) throws {
        try Tool.require(
            [try compiler(), "-O2", "-Wall", "-Wextra", "-Werror", "-fuse-ld=lld", "-static", "-o", output]
                + parts.map { "\(sources)/lab/\($0).c" })
    }

    /// Builds a program for the lab's Linux that executes a kernel.
    func buildKexecProgram(to output: String) throws { try buildForLab(["kexec"], to: output) }

    /// Builds a program for the lab's Linux that leaves half a session of the Live Update Orchestrator.
    func buildHalfSession(to output: String) throws { try buildForLab(["half-session"], to: output) }

    /// Builds a program for this machine that prints the rate of its time-stamp counter.
    func buildTickMeter(to output: String) throws {
        try Tool.require([
            try compiler(), "-O2", "-Wall", "-Wextra", "-Werror", "-o", output, "\(sources)/lab/ticks.c",
        ])
    }

    /// Builds the boot sector of the lab's disk for SeaBIOS.
    func buildBootSector(to output: String) throws {
        try Tool.require([
            try compiler(), "-m16", "-nostdlib", "-static", "-fuse-ld=lld", "-o", output,
            "-Wl,--oformat=binary,-Ttext=0x7c00,--build-id=none,--image-base=0", "\(sources)/lab/sector.S",
        ])
    }

    /// The text of the script that Debian's kernel starts in place of the installer.
    func initScript(_ guest: String) throws -> Data {
        try Data(contentsOf: URL(fileURLWithPath: "\(sources)/\(guest)/init.sh"))
    }

    /// A clang beside a Swift compiler; Debian's own lacks lld unless that is installed too.
    private func compiler() throws -> String {
        var candidates = ["/opt/swift/usr/bin/clang"]
        if let swift = Tool.find("swift") {
            let real = URL(fileURLWithPath: swift).resolvingSymlinksInPath()
            candidates.insert(real.deletingLastPathComponent().path + "/clang", at: 0)
        }
        if let clang = Tool.find("clang") { candidates.append(clang) }
        guard let found = candidates.first(where: { FileManager.default.isExecutableFile(atPath: $0) }) else {
            throw Failure("no clang found beside swift (looked at \(candidates.joined(separator: ", ")))")
        }
        return found
    }
}
