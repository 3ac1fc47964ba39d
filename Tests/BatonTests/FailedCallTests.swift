import Foundation
import TestSupport
import Testing

/// Each system call of an operation of CPR is made to fail, once or from then on, or to be late, with errors that it may
/// have; whatever comes of the operation, one VMM runs the guest afterwards, which has lost nothing, and nothing else is
/// left. Some are tried, and with `BATON_EVERY_CALL` (`make faults`) all.
@Suite(
    "Failed system calls", .serialized,
    .enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"),
    .enabled(if: SystemCallTrace.isAvailable, "needs strace, and the right to trace processes"))
struct FailedCallTests {
    /// All faults are tried: of every operation, or of the one that is named.
    private static let every = ProcessInfo.processInfo.environment["BATON_EVERY_CALL"]
    private static func isEvery(_ operation: FaultedOperation) -> Bool {
        every == operation.rawValue || every != nil && FaultedOperation(rawValue: every ?? "") == nil
    }
    /// How many faults of a kind are tried when not all are.
    private static func samples(_ kind: CallFault.Kind) -> Int { kind == .once ? 8 : 3 }
    /// Of a save of the mode reboot: what ties the file to guest memory that is not in it.
    private static let alwaysTried: Set<String> = ["newfstatat", "fsync", "fsetxattr", "fremovexattr"]
    /// Swift's runtime opens a file for random numbers when this fails, and keeps it.
    private static let excluded: Set<String> = ["getrandom"]

    /// Carries an operation out without a fault.
    /// - Returns: the trace, and how many descriptors the VMM has that runs the guest in the end.
    private func reference(_ operation: FaultedOperation) throws -> (lines: [Substring], descriptors: Int) {
        let run = try FaultedRun(operation, ["-e", "trace=all"])
        try run.carryOut()
        #expect(run.answer == "accepted")
        try run.expectUnharmed(descriptors: [])
        let descriptors = try run.descriptorCount()
        try run.end()
        return (try run.lines(), descriptors)
    }

    @Test(
        "One VMM runs the guest, which has lost nothing, whichever call fails", arguments: FaultedOperation.allCases)
    func everyCall(_ operation: FaultedOperation) throws {
        let (lines, after) = try reference(operation)
        var outcomes: [String: [String]] = [:]
        var count = 0
        for kind in CallFault.Kind.allCases {
            let all = CallFault.all(in: lines, kind, except: Self.excluded)
            #expect(all.count > 20)
            count += all.count
            let step = Self.isEvery(operation) ? 1 : max(1, all.count / Self.samples(kind))
            for (index, fault) in all.enumerated()
            where index % step == 0 || operation == .rebootSave && Self.alwaysTried.contains(fault.call) {
                do {
                    let answer = try outcome(operation, fault, descriptors: after)
                    outcomes[String(answer.prefix(90)), default: []].append("\(fault)")
                } catch { Issue.record("\(operation), \(fault): \(error)") }
            }
        }
        #expect(!outcomes.isEmpty)
        print("\n\(operation): \(count) faults; outcomes of those that were tried:")
        for (answer, faults) in outcomes.sorted(by: { ($1.value.count, $0.key) < ($0.value.count, $1.key) }) {
            let number = "\(faults.count)"
            print("\(String(repeating: " ", count: max(0, 6 - number.count)))\(number)  \(answer)")
            if answer != "accepted" { print("        as for \(faults.prefix(3).joined(separator: "; "))") }
        }
    }

    /// - Returns: what the operation was answered.
    private func outcome(_ operation: FaultedOperation, _ fault: CallFault, descriptors after: Int) throws -> String {
        let run = try FaultedRun(operation, fault.options, isLasting: fault.kind == .onwards)
        let before = try run.descriptorCount()
        try run.carryOut()
        var descriptors: Set = run.answer == "accepted" ? [after] : [before, after]
        // The name by which a trial knows that it is none; it is looked for again at the next update.
        if ["socket", "bind"].contains(fault.call) { descriptors.insert(after - 1) }
        // A VM that starts goes without a sandbox's warden, or a kernel's file that is held open, when it cannot have that.
        if operation == .rebootLoad { descriptors.insert(after - 1) }
        try run.expectUnharmed(descriptors: descriptors)
        try run.end()
        return run.answer
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
