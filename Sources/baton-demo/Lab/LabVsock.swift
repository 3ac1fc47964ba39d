import Foundation
import ProcessSupport

/// Sockets between a guest and the lab's Linux, which serves them itself (vhost-vsock): clients and servers at both ends
/// (`Tests/Guests/lab/vsock.c`). Each update ends every connection, at both ends, and the next ones work.
struct LabVsock {
    /// In the directory of the lab's host.
    static let peerProgram = "vsock-peer"
    private static let address = 42
    /// How the VMM is replaced, and how often.
    private static let rounds: [(mode: LabMachine.Mode, isInSandbox: Bool, updates: Int)] = [
        (.restart, true, 5), (.restart, false, 2), (.transfer, true, 2), (.reboot, true, 2),
    ]
    /// Connections that a server has at a time: from a busy client and from an idle one. One more may come before the
    /// one that has ended is counted.
    private static let mostOpen = 3

    private let guest: LabGuest
    private let peer: BackgroundProcess

    /// What was done at both ends.
    private struct Counts {
        let guest: [String: Int], host: [String: Int]

        func isPast(_ before: Counts, _ kind: String, by difference: Int = 1) -> Bool {
            guest[kind] ?? 0 >= (before.guest[kind] ?? 0) + difference
                && host[kind] ?? 0 >= (before.host[kind] ?? 0) + difference
        }
    }

    /// - Returns: what was seen.
    static func run(_ context: LabCase.Context) throws -> String {
        let seen = try rounds.map { round in
            let name = "\(round.mode.rawValue)\(round.isInSandbox ? "" : " in no sandbox")"
            var machine = LabMachine()
            (machine.bus, machine.hasCards, machine.socketAddress) = (.pci, false, address)
            (machine.mode, machine.isInSandbox) = (round.mode, round.isInSandbox)
            do { return "\(name): \(try run(machine, context, updates: round.updates))" } catch {
                throw Failure("\(name): \(error)")
            }
        }
        return seen.joined(separator: "; ")
    }

    private static func run(_ machine: LabMachine, _ context: LabCase.Context, updates: Int) throws -> String {
        let start = Clock.now
        // The guest's work is at it from its start on, and waits for the host's.
        let peer = try BackgroundProcess(["\(context.directory)/\(peerProgram)", "\(address)"])
        let test = LabVsock(guest: try LabGuest(machine, context), peer: peer)
        try test.guest.boot()
        try test.awaitWork(since: Counts(guest: [:], host: [:]))
        let booted = Clock.now - start
        for number in 1...updates {
            let before = try test.counts()
            do {
                try test.guest.update()
                try test.awaitEnds(since: before, 1)
            } catch {
                throw Failure("update \(number): \(error)")
            }
        }
        try test.expectRefusal(context)
        var ends = updates
        if machine.mode == .restart {
            try test.failUpdate()
            ends += 1
        }
        let all = try test.counts()
        guard all.guest["vsock-idle-ends"] == ends, all.host["vsock-idle-ends"] == ends else {
            throw Failure("connections have ended, but not \(ends) times: \(all)")
        }
        try test.guest.finish()
        return String(format: "at work after %.0f s, ", booted)
            + "\(ends) times all connections ended, once at each end, and new ones worked: "
            + "\(all.guest["vsock-echoes"] ?? 0) echoes for the guest, \(all.host["vsock-echoes"] ?? 0) for the host"
            + test.guest.pauseSummary
    }

    /// Has an update fail: the guest goes on in the old VMM, which has another device of the kernel's then.
    private func failUpdate() throws {
        let before = try counts()
        let reason = try guest.session.rollback(["/bin/false"], milliseconds: 100_000)
        do { try awaitEnds(since: before, 1) } catch { throw Failure("after '\(reason)': \(error)") }
    }

    private func counts() throws -> Counts {
        let said = peer.said
        if let line = said.components(separatedBy: "\n").first(where: { $0.contains("lab: FAIL") }) {
            throw Failure("the host's end: \(line)")
        }
        let complete = said.components(separatedBy: "\n").dropLast()
        var host: [String: Int] = [:]
        for word in complete.last(where: { $0.hasPrefix("vsock: report ") })?.split(separator: " ") ?? [] {
            let parts = word.split(separator: "=", maxSplits: 1)
            if parts.count == 2 { host[String(parts[0])] = Int(parts[1]) }
        }
        return Counts(guest: guest.reports.last?.work ?? [:], host: host)
    }

    private func awaitWork(since before: Counts) throws {
        try guest.wait(for: "echoes at both ends", seconds: 240) { try counts().isPast(before, "vsock-echoes") }
    }

    /// Waits until connections have ended at both ends, and others work.
    /// - Parameter times: how often.
    private func awaitEnds(since before: Counts, _ times: Int) throws {
        do {
            try guest.wait(for: "the connections' ends", seconds: 240) {
                let now = try counts()
                return now.isPast(before, "vsock-idle-ends", by: times)
                    && now.isPast(before, "vsock-busy-ends", by: times)
            }
        } catch {
            throw Failure("\(error)\nbefore: \(before)\nnow: \(try counts())")
        }
        try awaitWork(since: try counts())
        let now = try counts()
        for end in [now.guest, now.host] where end["vsock-open"] ?? 0 > Self.mostOpen {
            throw Failure("connections stay whose other ends are no more: \(now)")
        }
    }

    /// A second VM with the same address does not start.
    private func expectRefusal(_ context: LabCase.Context) throws {
        let result = try Tool.run([
            "timeout", "120", context.vmm, "-M", "microvm", "-accel", "kvm", "-m", "64M", "-display", "none",
            "-nodefaults", "-device", "vhost-vsock-device,guest-cid=\(Self.address)",
        ])
        let expected = "vhost-vsock: unable to set guest cid: Address already in use"
        guard result.reason.contains(expected) else { throw Failure("a second VM: \(result.reason)") }
    }
}
