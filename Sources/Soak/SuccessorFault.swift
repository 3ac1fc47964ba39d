import Foundation
import ProcessSupport

/// What is wrong with a new VMM that a guest is to be handed to. Each shows before that one could own
/// the guest, whatever the machine's load: none depends on time.
package enum SuccessorFault: String, CaseIterable {
    case doesNotExist = "does-not-exist"
    case endsAtOnce = "ends-at-once"
    case crashes
    case hangs
    case refusesItsOptions = "refuses-its-options"
    case lacksADevice = "lacks-a-device"
    case lacksMemory = "lacks-memory"
    case lacksDescriptors = "lacks-descriptors"
    /// Ended by SIGKILL at some system call of its start.
    case killed

    /// Those that this machine can make.
    package static var possible: [SuccessorFault] {
        allCases.filter { $0 != .killed || SearchPath.find("strace") != nil }
    }

    /// How long the update may take to find out.
    package var milliseconds: Int { self == .hangs ? 800 : 30_000 }

    /// The command of such a VMM.
    /// - Parameters:
    ///   - arguments: the command that would do.
    ///   - tooFewMegabytes: of address space, for any VMM of that guest.
    package func command(
        _ arguments: [String], tooFewMegabytes: ClosedRange<Int> = 24...500,
        using random: inout some RandomNumberGenerator
    ) -> [String] {
        switch self {
        case .doesNotExist: return ["/nonexistent/baton"] + arguments.dropFirst()
        case .endsAtOnce: return ["/bin/false"]
        case .crashes: return ["/bin/sh", "-c", "kill -SEGV $$"]
        case .hangs: return ["/bin/sleep", "600"]
        case .refusesItsOptions: return arguments + ["-no-such-option"]
        case .lacksADevice:
            guard let at = arguments.lastIndex(of: "-device") else { return ["/bin/false"] }
            return Array(arguments[..<at] + arguments[(at + 2)...])
        case .lacksMemory:
            return ["prlimit", "--as=\(Int.random(in: tooFewMegabytes, using: &random) << 20)"] + arguments
        case .lacksDescriptors: return ["prlimit", "--nofile=\(Int.random(in: 4...12, using: &random))"] + arguments
        case .killed:
            // As many of each as the dynamic linker and the loading of modules make.
            let (call, most) = [("openat", 20), ("mmap", 60), ("read", 12)].randomElement(using: &random)!
            let when = Int.random(in: 1...most, using: &random)
            // A child of the shell's, as strace waits for any of its own children: those of the VM's process, such as a VMM
            // of before that ends just now, have it start the new VMM untraced (with -D), or stay for ever (without).
            let tracer = "strace -qq -o /dev/null -e inject=\(call):signal=KILL:when=\(when) \"$@\"; exit $?"
            return ["/bin/sh", "-c", tracer, "sh"] + arguments
        }
    }
}
