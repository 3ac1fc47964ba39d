import Foundation

/// What is wrong with a new VMM that a guest is to be handed to. Each shows before that one could own
/// the guest, whatever the machine's load: none depends on time.
enum SuccessorFault: CaseIterable {
    case doesNotExist, endsAtOnce, hangs, refusesItsOptions, lacksADevice, lacksMemory, lacksDescriptors
    /// Ended by SIGKILL at some system call of its start.
    case killed

    /// Those that this machine can make.
    static var possible: [SuccessorFault] { allCases.filter { $0 != .killed || Tool.find("strace") != nil } }

    /// How long the update may take to find out.
    var milliseconds: Int { self == .hangs ? 800 : 30_000 }

    /// The command of such a VMM.
    /// - Parameter arguments: the command that would do.
    func command(_ arguments: [String], using random: inout some RandomNumberGenerator) -> [String] {
        switch self {
        case .doesNotExist: return ["/nonexistent/baton"] + arguments.dropFirst()
        case .endsAtOnce: return ["/bin/false"]
        case .hangs: return ["/bin/sleep", "600"]
        case .refusesItsOptions: return arguments + ["-no-such-option"]
        case .lacksADevice:
            guard let at = arguments.lastIndex(of: "-device") else { return ["/bin/false"] }
            return Array(arguments[..<at] + arguments[(at + 2)...])
        case .lacksMemory:
            // Less than guest RAM alone takes.
            return ["prlimit", "--as=\(Int.random(in: 24...500, using: &random) << 20)"] + arguments
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

/// A generator whose sequence a seed gives (splitmix64).
struct SeededGenerator: RandomNumberGenerator {
    private var state: UInt64

    init(seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var value = state
        value = (value ^ value &>> 30) &* 0xbf58_476d_1ce4_e5b9
        value = (value ^ value &>> 27) &* 0x94d0_49bb_1331_11eb
        return value ^ value &>> 31
    }
}
