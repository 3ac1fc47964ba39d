import Foundation
import Glibc
import ProcessSupport

/// Mode reboot over restarts of the lab's Linux: guest RAM, its disk and the checkpoint are files on persistent memory
/// (an ext4 with DAX). The case runs anew in each Linux, and finds there how far it is.
struct LabStorage {
    /// Of the lab's Linux, under one guest.
    static let restarts = 3
    static let memorySize = 1 << 30
    private static let device = "/dev/pmem0"

    /// What is known of the guest from one Linux to the next.
    private struct Progress: Codable {
        var restarts = 0
        /// The lab's boots so far, by the kernel's id.
        var hosts: [String] = []
        /// The first and the last.
        var reports: [LabGuest.Report] = []
        /// Seconds from the last instruction before a restart to the first work after it.
        var gaps: [Double] = []
    }

    private let directory: TemporaryDirectory
    private var path: String { directory.path }
    private var checkpoint: String { directory.file("checkpoint") }
    private var record: String { directory.file("progress.json") }

    /// - Parameter executesKernel: by kexec, else by a reset of the machine.
    /// - Returns: what was seen, after the last restart. At all others the lab's Linux ends in here.
    static func run(_ machine: LabMachine, _ context: LabCase.Context, executesKernel: Bool) throws -> String {
        let storage = try LabStorage()
        var progress = try storage.progress()
        let host = try String(contentsOfFile: "/proc/sys/kernel/random/boot_id", encoding: .utf8)
        guard !progress.hosts.contains(host) else { throw Failure("the lab has not started anew") }
        progress.hosts.append(host)

        var machine = machine
        machine.storage = storage.path
        let guest = try LabGuest(machine, context, earlier: progress.reports)
        do {
            if let before = progress.reports.last {
                try guest.load(from: storage.checkpoint)
                try guest.awaitWork(since: before)
                progress.gaps.append(Date().timeIntervalSince1970 - before.time)
            } else {
                try guest.boot()
                // Work enough that there is something to lose.
                if let first = guest.reports.last { try guest.awaitWork(since: first) }
            }
        } catch {
            throw Failure("after \(progress.restarts) restarts of the lab: \(error)")
        }
        guard progress.restarts < restarts else {
            try guest.finish(restarts: restarts)
            let gaps = progress.gaps.map { String(format: "%.0f", $0) }.joined(separator: ", ")
            return "\(restarts) \(executesKernel ? "kexecs" : "resets"), nothing lost: \(guest.summary); "
                + "gaps of \(gaps) s"
        }
        try guest.save(to: storage.checkpoint)
        progress.restarts += 1
        progress.reports = [guest.reports.first, guest.reports.last].compactMap { $0 }
        try JSONEncoder().encode(progress).write(to: URL(fileURLWithPath: storage.record))
        try storage.unmount()
        try LabHost.restart(
            kexec: executesKernel ? "\(context.directory)/\(LabHost.kexecProgram)" : nil, context.files,
            initrd: "\(context.directory)/\(LabHost.initrdName)")
    }

    private init() throws {
        try LabHost.makePersistentMemory(Self.device)
        directory = try TemporaryDirectory.scratch()
        if !mount() {
            try Tool.require(["mkfs.ext4", "-q", "-b", "4096", Self.device])
            guard mount() else { throw Failure.system("mounting \(Self.device) with DAX") }
        }
    }

    private func mount() -> Bool { Glibc.mount(Self.device, path, "ext4", 0, "dax=always") == 0 }

    private func unmount() throws {
        guard umount(path) == 0 else { throw Failure.system("unmounting \(path)") }
    }

    private func progress() throws -> Progress {
        guard let data = FileManager.default.contents(atPath: record) else { return Progress() }
        return try JSONDecoder().decode(Progress.self, from: data)
    }
}
