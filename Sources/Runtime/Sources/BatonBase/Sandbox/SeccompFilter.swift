import CBaton
import Glibc

/// A seccomp filter: a classic BPF program that the kernel runs for each system call of a thread.
///
/// - Source: seccomp(2), Linux' `include/uapi/linux/{filter,seccomp}.h`.
public struct SeccompFilter {
    /// What becomes of a call that is not allowed.
    public enum Otherwise: Equatable {
        /// It fails with EPERM.
        case refuse
        /// The process that has the listener decides.
        case ask
        /// It passes, unless another filter of the thread has something against it.
        case allow
    }

    private enum Code {
        static let load: UInt16 = 0x20  // BPF_LD | BPF_W | BPF_ABS
        static let jump: UInt16 = 0x05  // BPF_JMP | BPF_JA
        static let jumpIfEqual: UInt16 = 0x15  // BPF_JMP | BPF_JEQ | BPF_K
        static let jumpIfGreater: UInt16 = 0x25
        static let jumpIfNotLess: UInt16 = 0x35
        static let jumpIfAnySet: UInt16 = 0x45
        static let and: UInt16 = 0x54  // BPF_ALU | BPF_AND | BPF_K
        static let end: UInt16 = 0x06  // BPF_RET | BPF_K
    }

    private enum Verdict {
        static let allow: UInt32 = 0x7fff_0000
        static let ask: UInt32 = 0x7fc0_0000
        static func fail(_ code: Int32) -> UInt32 { 0x0005_0000 | UInt32(code) }
    }

    /// Of `struct seccomp_data`, in bytes.
    private enum Field {
        static let number: UInt32 = 0
        static let architecture: UInt32 = 4
        /// The lower half of an argument; no rule looks at the upper one, as all that are looked at are ints.
        static func argument(_ index: UInt32) -> UInt32 { 16 + 8 * index }
    }

    public private(set) var program: [cbaton_instruction] = []
    private let otherwise: UInt32

    /// - Parameters:
    ///   - calls: that pass, some of them depending on their arguments.
    ///   - refused: that never pass, and that nobody is asked for.
    ///   - otherwise: for all others.
    ///   - hasDatagrams: whether the VM has datagram sockets, for which a trial needs others in their places.
    public init(
        allowing calls: SystemCallSet, refusing refused: SystemCallSet = SystemCallSet(),
        otherwise: Otherwise,
        hasDatagrams: Bool = false
    ) {
        self.init(otherwise)
        for number in refused.ranges.joined() {
            add(Code.jumpIfEqual, number, ifFalse: 1)
            end(Verdict.fail(EPERM))
        }
        addRules(for: calls, hasDatagrams)
        addSearch(calls.ranges[...], inside: Verdict.allow)
    }

    /// One that takes from a thread what another filter allows.
    /// - Parameters:
    ///   - calls: that fail.
    ///   - isForThreads: whether clone(2) makes threads only, and openat(2) opens only what is there, for reading.
    public init(taking calls: SystemCallSet, isForThreads: Bool) {
        self.init(.allow)
        if isForThreads {
            let both = SystemCallSet("clone openat")
            rule("clone", both) { filter in
                filter.add(Code.load, Field.argument(0))
                filter.add(Code.and, 0x0001_0100 /* CLONE_THREAD, CLONE_VM */)
                filter.add(Code.jumpIfEqual, 0x0001_0100, ifTrue: 1)
                filter.end(Verdict.fail(EPERM))
                filter.end(Verdict.allow)
            }
            rule("openat", both) { filter in
                filter.add(Code.load, Field.argument(2))
                filter.add(
                    Code.jumpIfAnySet, UInt32(bitPattern: O_ACCMODE | O_CREAT | O_TRUNC), ifFalse: 1)
                filter.end(Verdict.fail(EPERM))
                filter.end(Verdict.allow)
            }
        }
        addSearch(calls.ranges[...], inside: Verdict.fail(EPERM))
    }

    /// The beginning of all: calls of this processor's kind only.
    private init(_ otherwise: Otherwise) {
        self.otherwise =
            switch otherwise {
            case .ask: Verdict.ask
            case .refuse: Verdict.fail(EPERM)
            case .allow: Verdict.allow
            }
        add(Code.load, Field.architecture)
        add(Code.jumpIfEqual, cbaton_audit_architecture(), ifTrue: 1)
        end(Verdict.fail(ENOSYS))
        add(Code.load, Field.number)
    }

    /// Puts it on the calling thread.
    /// - Returns: the listener, owned by the caller; -1 for a filter that asks nobody.
    public func install() throws(VMMError) -> Int32 {
        let asks = otherwise == Verdict.ask
        let result = cbaton_filter(program, program.count, asks ? 1 : 0)
        guard result >= 0 else { throw .system("failed to install seccomp syscall filter in the kernel") }
        return asks ? result : -1
    }

    // MARK: Rules that look at arguments

    private enum Number {
        static func of(_ name: String) -> UInt32? {
            let number = cbaton_system_call_number(name)
            return number < 0 ? nil : UInt32(number)
        }
    }

    private mutating func addRules(for calls: SystemCallSet, _ hasDatagrams: Bool) {
        // To type into the operator's terminal, which standard input may be.
        rule("ioctl", calls) { filter in
            filter.add(Code.load, Field.argument(1))
            for request: UInt32 in [0x5412 /* TIOCSTI */, 0x541c /* TIOCLINUX */] {
                filter.add(Code.jumpIfEqual, request, ifFalse: 1)
                filter.end(Verdict.fail(EPERM))
            }
            filter.end(Verdict.allow)
        }
        // In no new namespace, in which it might have all capabilities. clone3 hides its flags from filters: the
        // C library takes clone when that is not there.
        rule("clone", calls) { filter in
            let namespaces: UInt32 =
                0x0002_0000 | 0x0200_0000 | 0x0400_0000 | 0x0800_0000 | 0x1000_0000 | 0x2000_0000
                | 0x4000_0000
            filter.add(Code.load, Field.argument(0))
            filter.add(Code.jumpIfAnySet, namespaces, ifFalse: 1)
            filter.end(Verdict.fail(EPERM))
            filter.end(Verdict.allow)
        }
        if let clone3 = Number.of("clone3") {
            add(Code.jumpIfEqual, clone3, ifFalse: 1)
            end(Verdict.fail(ENOSYS))
        }
        // Streams, which go nowhere without connect(2). A datagram names its destination itself.
        rule("socket", calls) { filter in
            filter.addStreamsOnly([UInt32(AF_UNIX), UInt32(AF_INET), UInt32(AF_INET6)])
        }
        rule("socketpair", calls) { filter in
            filter.addStreamsOnly([UInt32(AF_UNIX)], orDatagrams: hasDatagrams)
        }
        // HostAccess asks for these by itself.
        if let connect = Number.of("connect") {
            add(Code.jumpIfEqual, connect, ifFalse: 1)
            end(Verdict.fail(EPERM))
        }
        // TCP Fast Open connects.
        for (name, flags) in [("sendto", UInt32(3)), ("sendmsg", 2)] {
            rule(name, calls) { filter in
                filter.add(Code.load, Field.argument(flags))
                filter.add(Code.jumpIfAnySet, 0x2000_0000 /* MSG_FASTOPEN */, ifFalse: 1)
                filter.end(Verdict.fail(EPERM))
                filter.end(Verdict.allow)
            }
        }
    }

    private mutating func addStreamsOnly(_ families: [UInt32], orDatagrams: Bool = false) {
        add(Code.load, Field.argument(0))
        for (index, family) in families.enumerated() {
            add(Code.jumpIfEqual, family, ifTrue: UInt8(families.count - index))
        }
        end(Verdict.fail(EPERM))
        add(Code.load, Field.argument(1))
        add(Code.and, 0xf)
        if orDatagrams { add(Code.jumpIfEqual, SOCK_DGRAM.rawValue, ifTrue: 3) }
        add(Code.jumpIfEqual, SOCK_STREAM.rawValue, ifTrue: 2)
        add(Code.jumpIfEqual, SOCK_SEQPACKET.rawValue, ifTrue: 1)
        end(Verdict.fail(EPERM))
        end(Verdict.allow)
    }

    /// For a call that is allowed at all: `body` ends the program in all its ways.
    private mutating func rule(_ name: String, _ calls: SystemCallSet, _ body: (inout SeccompFilter) -> Void) {
        guard let number = Number.of(name), calls.contains(number) else { return }
        let start = program.count
        add(Code.jumpIfEqual, number)
        body(&self)
        program[start].if_false = UInt8(program.count - start - 1)
    }

    // MARK: All others

    /// A binary search, as the kernel runs through it for every call whose arguments are looked at, and for all of its
    /// calls when the filter is installed; short, as the kernel compiles it then.
    /// - Parameter least: the number is known to be no less.
    private mutating func addSearch(_ ranges: ArraySlice<ClosedRange<UInt32>>, inside: UInt32, least: UInt32 = 0) {
        guard ranges.count > 1 else {
            if let range = ranges.first {
                if least < range.lowerBound { add(Code.jumpIfNotLess, range.lowerBound, ifFalse: 2) }
                add(Code.jumpIfGreater, range.upperBound, ifTrue: 1)
                end(inside)
            }
            return end(otherwise)
        }
        let middle = ranges.startIndex + ranges.count / 2
        let pivot = ranges[middle].lowerBound
        let branch = program.count
        add(Code.jumpIfNotLess, pivot)
        addSearch(ranges[..<middle], inside: inside, least: least)
        let distance = program.count - branch - 1
        if let short = UInt8(exactly: distance) {
            program[branch].if_true = short
        } else {
            // It does not fit into a condition's byte.
            program[branch].if_false = 1
            program.insert(
                cbaton_instruction(code: Code.jump, if_true: 0, if_false: 0, operand: UInt32(distance)), at: branch + 1)
        }
        addSearch(ranges[middle...], inside: inside, least: pivot)
    }

    private mutating func add(_ code: UInt16, _ operand: UInt32, ifTrue: UInt8 = 0, ifFalse: UInt8 = 0) {
        program.append(cbaton_instruction(code: code, if_true: ifTrue, if_false: ifFalse, operand: operand))
    }

    private mutating func end(_ verdict: UInt32) { add(Code.end, verdict) }
}
