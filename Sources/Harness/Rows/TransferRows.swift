import Foundation
import ProcessSupport

/// New VMMs that somebody else has started, and that fail: the guest goes on in the process that it was in.
extension Harness {
    static let transferRows = [
        Row("transfer-nobody", "nobody waits at the channel", .connects) { harness in
            let machine = try harness.machine()
            return try machine.expectRefusals(stopping: false) { [try machine.transfer()] }
        },
        transferFailure("transfer-option", "the new VMM lacks a device that was saved") { machine in
            var rest = machine.arguments
            guard let at = rest.firstIndex(of: "virtio-rng-device") else { throw Failure("no device to leave out") }
            rest.removeSubrange(at - 1...at)
            return (rest, nil)
        },
        transferFailure("transfer-ram-size", "the new VMM has another size of RAM") { machine in
            (machine.arguments.map { $0.replacingOccurrences(of: "16M", with: "32M") }, nil)
        },
        transferFailure("transfer-killed", "the new VMM was killed") { ($0.arguments, SIGKILL) },
        transferFailure("transfer-stopped", "the new VMM stands still", timeout: 700) { ($0.arguments, SIGSTOP) },
    ]

    /// - Parameter body: the new VMM's arguments, and the signal that it gets when it waits.
    private static func transferFailure(
        _ name: String, _ subject: String, timeout: Int = 10_000,
        _ body: @escaping @Sendable (Machine) throws -> ([String], Int32?)
    ) -> Row {
        Row(name, subject, .connects) { harness in
            let machine = try harness.machine()
            let state = try machine.stateBeforeFailure()
            let (arguments, signal) = try body(machine)
            let reason = try machine.transferInVain(to: arguments, signal, timeout: timeout)
            try machine.expectTakenBack(state, way: .transfer)
            return reason
        }
    }
}

extension Machine {
    /// A transfer to a new VMM that cannot have the guest.
    /// - Parameters:
    ///   - arguments: its command.
    ///   - signal: what it gets when it waits.
    ///   - prepare: is called when it waits.
    /// - Returns: why.
    package func transferInVain(
        to arguments: [String], _ signal: Int32? = nil, timeout: Int = 10_000, prepare: () throws -> Void = {}
    ) throws -> String {
        let new = try startWaiting(arguments)
        if let signal { new.signal(signal) }
        try prepare()
        let reason = try transfer(timeout: timeout)
        // It was given up; who started it sees to its end. On a busy host it may come to its load, and stop there, later.
        try eventually("the new VMM, which was given up, ends; \(new.report)", by: configuration.deadline) {
            new.signal(SIGCONT)
            return !new.isRunning
        }
        let exit = try new.waitForExit(by: configuration.deadline)
        try require(exit != .status(0), "a new VMM that got no guest ended with \(exit)")
        guard let reason else { throw Failure("the update was reported as done") }
        return reason
    }
}
