import Foundation
import ProcessSupport

/// Mode liveupdate over kexecs of the lab's Linux, under an x86-64 Linux on KVM that works on its memory, a disk, timers,
/// signals and registers, compares its clocks all the time, and has a network card. The case runs anew in each Linux, and finds in the lab's
/// shared directory how far it is.
struct LabLiveUpdateKVM {
    /// Of the lab's Linux, under one guest.
    static let kexecs = 3

    /// What is known of the guest from one Linux to the next.
    private struct Progress: Codable {
        var kexecs = 0
        /// The lab's boots so far, by the kernel's id.
        var hosts: [String] = []
        /// The first and the last.
        var reports: [LabGuest.Report] = []
        /// By phases, as the VMM has measured it.
        var pauses: [String] = []
    }

    private let context: LabCase.Context
    private var directory: String { context.directory }
    private var checkpoint: String { "\(directory)/live-kvm-checkpoint" }
    private var record: String { "\(directory)/live-kvm-progress.json" }

    /// - Returns: what was seen, after the last kexec. At all others the lab's Linux ends in here.
    static func run(_ context: LabCase.Context) throws -> String {
        try LabHost.mountShared(context.directory)
        let lab = LabLiveUpdateKVM(context: context)
        var progress = try lab.progress()
        do {
            return try lab.go(&progress)
        } catch {
            throw Failure("after \(progress.kexecs) kexecs of the lab: \(error)")
        }
    }

    private func progress() throws -> Progress {
        guard let data = FileManager.default.contents(atPath: record) else { return Progress() }
        return try JSONDecoder().decode(Progress.self, from: data)
    }

    private var machine: LabMachine {
        var machine = LabMachine()
        (machine.bus, machine.hasCards, machine.hasIdleCard, machine.mode) = (.mmio, false, true, .liveupdate)
        // Each byte of it takes its time in the lab.
        (machine.memory, machine.memoryAtWork) = (256, 32)
        machine.diskDirectory = directory
        return machine
    }

    /// The guest's Linux sees that its card's link has gone down and come up.
    private func awaitLinkChange(_ guest: LabGuest, since before: LabGuest.Report) throws {
        func changes(_ report: LabGuest.Report?) -> Int { report?.work["carrier-changes"] ?? 0 }
        try guest.wait(for: "link that goes down and up", seconds: 120) {
            changes(guest.reports.last) >= changes(before) + 2
        }
        guard changes(guest.reports.last) == changes(before) + 2 else {
            throw Failure("the link has changed \(changes(guest.reports.last) - changes(before)) times, not twice")
        }
        // What it had in hand all the while is sent in the end.
        try guest.wait(for: "card that has sent what it had", seconds: 120) {
            guest.reports.last?.work["unsent"] == 0
        }
    }

    /// The guest has been over all of the memory that it works on.
    private func awaitRound(_ guest: LabGuest, since before: LabGuest.Report) throws {
        func pages(_ report: LabGuest.Report?) -> Int { report?.work["pages"] ?? 0 }
        let target = pages(before) + (guest.machine.memoryAtWork << 8)
        try guest.wait(for: "round of the guest over its memory", seconds: 240) { pages(guest.reports.last) >= target }
    }

    private func go(_ progress: inout Progress) throws -> String {
        let host = try String(contentsOfFile: "/proc/sys/kernel/random/boot_id", encoding: .utf8)
        guard !progress.hosts.contains(host) else { throw Failure("the lab has not executed another kernel") }
        progress.hosts.append(host)
        let guest = try LabGuest(machine, context, earlier: progress.reports)
        if let before = progress.reports.last {
            try guest.load(from: checkpoint)
            try guest.awaitWork(since: before)
            try awaitLinkChange(guest, since: before)
            guard let pause = guest.session.hostPause() else { throw Failure("the VMM does not say how long it took") }
            progress.pauses.append(pause)
        } else {
            try guest.boot()
        }
        // Work enough that there is something to lose, and that all of what was written before has been looked at.
        if let last = guest.reports.last {
            try guest.awaitWork(since: last)
            try awaitRound(guest, since: last)
        }
        guard progress.kexecs < Self.kexecs else {
            try guest.finish(restarts: Self.kexecs)
            return "\(Self.kexecs) kexecs, nothing lost: uptime \(Int(guest.reports.last?.uptime ?? 0)) s and the same "
                + "boot, the link down and up each time, \(guest.summary); " + progress.pauses.joined(separator: "; ")
        }
        try guest.save(to: checkpoint)
        progress.kexecs += 1
        progress.reports = [guest.reports.first, guest.reports.last].compactMap { $0 }
        try JSONEncoder().encode(progress).write(to: URL(fileURLWithPath: record))
        // The VMM waits on, and its session with it.
        return try withExtendedLifetime(guest) {
            try LabHost.restart(
                kexec: "\(directory)/\(LabHost.kexecProgram)", kernel: context.files.own, context.files,
                initrd: "\(directory)/\(LabHost.initrdName)")
        }
    }
}
