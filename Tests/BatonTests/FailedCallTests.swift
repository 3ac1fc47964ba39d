import Foundation
import TestSupport
import Testing

/// Each system call of an update is made to fail once, in either VMM, with errors that it may have; whatever comes of
/// the update, one VMM runs the guest afterwards, which has lost nothing, and nothing else is left. Some are tried, and
/// with `BATON_EVERY_CALL` (`make faults`) all.
@Suite(
    "Failed system calls", .serialized,
    .enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"),
    .enabled(if: SystemCallTrace.isAvailable, "needs strace, and the right to trace processes"))
struct FailedCallTests {
    /// Whose calls fail: the old VMM's, in the process that executes the new one and in its child, or the new one's.
    enum Role: String, CaseIterable { case old, new }

    private struct Fault: CustomStringConvertible {
        let call: String
        /// Which call of that name in a process, from 1.
        let number: Int
        let error: String
        var description: String { "\(call) \(number) \(error)" }
        /// Options of strace.
        var options: [String] { ["-e", "trace=\(call)", "-e", "inject=\(call):error=\(error):when=\(number)"] }
    }

    private static let every = ProcessInfo.processInfo.environment["BATON_EVERY_CALL"] != nil

    /// They cannot fail, or their result is not an error, or they are strace's own way.
    private static let withoutError: Set<String> = [
        "brk", "arch_prctl", "set_tid_address", "set_robust_list", "get_robust_list", "rseq", "exit_group", "getpid",
        "gettid", "getppid", "getuid", "geteuid", "munmap", "close", "futex", "sched_yield", "rt_sigprocmask",
        "rt_sigreturn", "kill", "restart_syscall", "execve",
    ]
    private static let errors: [String: [String]] = [
        "openat": ["EMFILE", "ENOMEM", "EACCES"], "mmap": ["ENOMEM"], "mremap": ["ENOMEM"], "mprotect": ["ENOMEM"],
        "clone": ["EAGAIN"], "clone3": ["EAGAIN"], "fcntl": ["EMFILE", "EINVAL"], "memfd_create": ["EMFILE", "ENOMEM"],
        "socketpair": ["EMFILE"], "pipe2": ["EMFILE"], "epoll_create1": ["EMFILE"], "eventfd2": ["EMFILE"],
        "pidfd_open": ["EMFILE"], "epoll_ctl": ["ENOSPC", "ENOMEM"], "write": ["EIO", "ENOSPC"],
        "ftruncate": ["ENOSPC", "EIO"], "sendmsg": ["ENOBUFS"], "recvmsg": ["ENOMEM"], "getrandom": ["EAGAIN"],
        "prctl": ["EINVAL"], "kcmp": ["EPERM"], "poll": ["ENOMEM"], "ppoll": ["ENOMEM"],
    ]

    /// Updates a guest under strace.
    /// - Returns: the refusal, or "accepted"; and the lines of the trace.
    private func update(_ guest: CountingGuest, _ role: Role, _ options: [String]) throws -> (String, [Substring]) {
        let trace = guest.directory.file("trace")
        var tracer: ChildProcess?
        var argv = guest.arguments
        switch role {
        // With -D the tracer is no parent, and the new VMM has the PID.
        case .new: argv = ["strace", "-D", "-f", "-q", "-o", trace] + options + argv
        case .old:
            // The process is let go of when it executes the new VMM.
            let process = try ChildProcess(
                ["strace", "-f", "-b", "execve", "-o", trace, "-p", "\(guest.process.pid)"] + options)
            try process.waitForErrors("attached")
            tracer = process
        }
        let answer = refusal {
            try guest.qmp.execute(
                "cpr-update", ["argv": argv, "preflight": false, "timeout-ms": 20_000, "downtime-ms": 20_000])
        }
        if let tracer {
            tracer.signal(SIGINT)
            try tracer.waitForExit()
        }
        return (answer, try String(contentsOfFile: trace, encoding: .utf8).split(separator: "\n"))
    }

    /// What can fail: each call of an update up to where the guest is the new VMM's for good.
    private func faults(_ role: Role) throws -> [Fault] {
        let guest = try CountingGuest()
        let (answer, lines) = try update(guest, role, ["-e", "trace=all"])
        #expect(answer == "accepted")
        // How often each process makes each call.
        var counts: [Substring: [Substring: Int]] = [:]
        for line in lines {
            // The last of the stages that a new VMM reports: a byte behind the eight of the channel's secret.
            if line.contains("write("), line.contains("C\", 9)") { break }
            guard let match = line.prefixMatch(of: #/(\d+) +(\w+)\(/#) else { continue }
            counts[match.2, default: [:]][match.1, default: 0] += 1
        }
        var faults: [Fault] = []
        for (call, processes) in counts.sorted(by: { $0.key < $1.key }) where !Self.withoutError.contains(String(call))
        {
            // Swift's runtime opens a file for random numbers then, and keeps it.
            if role == .new, call == "getrandom" { continue }
            for number in 1...(processes.values.max() ?? 1) {
                for error in Self.errors[String(call)] ?? ["EIO"] {
                    faults.append(Fault(call: String(call), number: number, error: error))
                }
            }
        }
        return faults
    }

    private func vmm(_ guest: CountingGuest) throws -> Int {
        let query = try #require(try guest.qmp.execute("query-cpr") as? [String: Any])
        return try #require(query["pid"] as? Int)
    }

    private func descriptorCount(_ guest: CountingGuest) throws -> Int {
        try FileManager.default.contentsOfDirectory(atPath: "/proc/\(try vmm(guest))/fd").count
    }

    /// VMMs of this guest. A placeholder has none of its arguments, and one that has ended none at all.
    private func vmmCount(_ guest: CountingGuest) throws -> Int {
        try FileManager.default.contentsOfDirectory(atPath: "/proc").count { name in
            guard Int(name) != nil, let text = try? String(contentsOfFile: "/proc/\(name)/cmdline", encoding: .utf8)
            else { return false }
            let words = text.split(separator: "\0")
            return words.first.map(String.init) == Products.baton && words.contains { $0.contains(guest.ramFile) }
        }
    }

    private func expectUnharmed(_ guest: CountingGuest, descriptors: Int) throws {
        try guest.waitForProgress(past: guest.count)
        #expect(try guest.qmp.status() == "running")
        try guest.qmp.execute("stop")
        #expect(guest.checksum == CountingGuest.expectedChecksum(after: guest.count))
        try guest.qmp.execute("cont")
        try guest.waitForProgress(past: guest.count)
        try eventually("there is one VMM") { try vmmCount(guest) == 1 }
        try eventually("the VMM has \(descriptors) descriptors, and not \((try? descriptorCount(guest)) ?? -1)") {
            try descriptorCount(guest) == descriptors
        }
    }

    @Test("One VMM runs the guest, which has lost nothing, whichever call fails", arguments: Role.allCases)
    func onceEach(_ role: Role) throws {
        let all = try faults(role)
        #expect(all.count > 50)
        var outcomes: [String: [String]] = [:]
        let step = Self.every ? 1 : max(1, all.count / 12)
        for index in stride(from: 0, to: all.count, by: step) {
            let fault = all[index]
            let guest = try CountingGuest()
            let descriptors = try descriptorCount(guest)
            let (answer, _) = try update(guest, role, fault.options)
            do { try expectUnharmed(guest, descriptors: descriptors) } catch {
                Issue.record("\(role.rawValue), \(fault): \(error)")
            }
            outcomes[String(answer.prefix(90)), default: []].append("\(fault)")
            try guest.qmp.execute("quit")
        }
        #expect(outcomes.values.joined().count > 8)
        print("\nthe \(role.rawValue) VMM's calls: \(all.count) faults; outcomes of those that were tried:")
        for (answer, faults) in outcomes.sorted(by: { ($1.value.count, $0.key) < ($0.value.count, $1.key) }) {
            let number = "\(faults.count)"
            print("\(String(repeating: " ", count: max(0, 6 - number.count)))\(number)  \(answer)")
            if answer != "accepted" { print("        as for \(faults.prefix(3).joined(separator: "; "))") }
        }
    }

    /// The kernel had no memory for a read or a write: the client is heard all the same, as its connection is none the
    /// worse.
    @Test("A client is heard and answered although every other call for it fails for lack of memory")
    func clientsOutliveFailures() throws {
        let guest = try CountingGuest()
        let tracer = try ChildProcess([
            "strace", "-f", "-o", "/dev/null", "-p", "\(guest.process.pid)", "-e", "trace=recvmsg,sendto",
            "-e", "inject=recvmsg:error=ENOMEM:when=1+2", "-e", "inject=sendto:error=ENOBUFS:when=1+2",
        ])
        try tracer.waitForErrors("attached")
        for _ in 0..<5 { #expect(try guest.qmp.status() == "running") }
        tracer.signal(SIGINT)
        try tracer.waitForExit()
        try guest.waitForProgress(past: guest.count)
        try guest.qmp.execute("quit")
    }
}
