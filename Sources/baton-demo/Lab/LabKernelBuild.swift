import Foundation
import ProcessSupport

/// Builds a Linux for the lab with what Debian's kernels are built without, iommufd first of all: from Debian's own
/// source, with the options of `Tests/Guests/lab/host.config`, and without modules. It takes ten minutes on two cores,
/// and is kept in the cache.
enum LabKernelBuild {
    /// What the kernel's makefiles call.
    private static let programs = ["make", "gcc", "ld", "flex", "bison", "bc", "tar", "xz", "nice"]

    private static func options() throws -> String { try "\(GuestBuilder().sources)/lab/host.config" }

    /// With which options a kernel was built.
    private static func record(of kernel: LinuxKernel) -> String { "\(kernel.directory)/options" }

    /// Whether there is a kernel, built with the options of today.
    static func isDone(_ kernel: LinuxKernel) -> Bool {
        guard kernel.isComplete, let options = try? options() else { return false }
        return FileManager.default.contentsEqual(atPath: options, andPath: record(of: kernel))
    }

    /// - Throws: what is missing, or why the build failed.
    static func build(_ kernel: LinuxKernel, progress: (String) -> Void) throws {
        guard !isDone(kernel) else { return }
        let missing = programs.filter { Tool.find($0) == nil }
        guard missing.isEmpty else {
            throw Failure("building the lab's kernel needs \(missing.joined(separator: ", ")), and libelf-dev")
        }
        let scratch = "\(kernel.directory).\(getpid()).new"
        try FileManager.default.createDirectory(atPath: scratch, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(atPath: scratch) }
        progress("downloading Debian's source of Linux, for the lab's own kernel")
        let source = try obtainSource(scratch: scratch)
        progress("building the lab's own kernel: ten minutes on two cores")
        let options = try options(), output = "\(scratch)/output"
        let make = ["nice", "-n", "19", "make", "-s", "-C", source, "O=\(output)"]
        try Tool.require(make + ["KCONFIG_ALLCONFIG=\(options)", "allnoconfig"])
        try checkOptions(options, built: "\(output)/.config")
        try Tool.require(make + ["-j\(ProcessInfo.processInfo.activeProcessorCount)", "bzImage"])
        try? FileManager.default.removeItem(atPath: kernel.directory)
        try FileManager.default.createDirectory(atPath: kernel.directory, withIntermediateDirectories: true)
        try FileManager.default.copyItem(atPath: options, toPath: record(of: kernel))
        try FileManager.default.moveItem(atPath: "\(output)/arch/x86/boot/bzImage", toPath: kernel.image)
    }

    /// - Returns: the directory of the source.
    private static func obtainSource(scratch: String) throws -> String {
        var reasons: [String] = []
        for suite in LaterDebian.suites {
            do {
                let apt = try LaterDebian.archive(suite: suite, directory: "\(scratch)/apt-\(suite)")
                let names = try apt.dependencies(of: "linux-source")
                guard let name = names.first(where: { $0.hasPrefix("linux-source-") }) else {
                    throw Failure("linux-source names no version")
                }
                try Tool.require(["dpkg-deb", "-x", try apt.download(name, into: scratch), "\(scratch)/package"])
                try Tool.require(["tar", "xf", "\(scratch)/package/usr/src/\(name).tar.xz", "-C", scratch])
                return "\(scratch)/\(name)"
            } catch {
                reasons.append("\(suite): \(error)")
            }
        }
        throw Failure(reasons.joined(separator: "\n"))
    }

    /// An option whose conditions are not met is left out without a word.
    private static func checkOptions(_ wanted: String, built: String) throws {
        func lines(_ path: String) throws -> [String] {
            try String(contentsOfFile: path, encoding: .utf8).split(separator: "\n").map(String.init)
        }
        let all = Set(try lines(built))
        let absent = try lines(wanted).filter { $0.hasPrefix("CONFIG_") && !all.contains($0) }
        guard absent.isEmpty else {
            throw Failure("this Linux does not take \(absent.joined(separator: ", "))")
        }
    }
}
