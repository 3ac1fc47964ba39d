import Foundation
import ProcessSupport

/// The ways in which the VMM is replaced under a guest of the lab. Each ends when the guest has gone on with all of its
/// work.
extension LabGuest {
    /// The limits of an update are for machines, not for an emulator of one.
    private static let limits: [String: Any] = ["timeout-ms": 100_000, "downtime-ms": 20_000]

    func update() throws {
        switch machine.mode {
        case .restart: try restart()
        case .transfer: try transfer()
        case .reboot:
            let checkpoint = directory.file("checkpoint")
            try save(to: checkpoint)
            session = try Session(
                arguments: arguments + ["-S"], socketPath: socket, directory: directory.path)
            try load(from: checkpoint)
        case .liveupdate: throw Failure("mode liveupdate is for a guest whose host executes another kernel")
        }
        // What it did in the old VMM while the new one started is no sign of life.
        session.console.drain()
        guard let before = reports.last else { throw Failure("the guest has not begun") }
        try awaitWork(since: before)
    }

    private func restart() throws {
        let process = try session.peerProcess()
        try session.command("cpr-update", Self.limits.merging(["argv": arguments]) { first, _ in first })
        guard try session.peerProcess() == process, session.process.pid == process else {
            throw Failure("the VMM has another PID than \(process)")
        }
        notePause()
    }

    /// To a process that is started first.
    private func transfer() throws {
        let channel = directory.file("cpr")
        let place = #"{"transport": "socket", "type": "unix", "path": "\#(channel)"}"#
        let address = #"{"channel-type": "cpr", "addr": \#(place)}"#
        let next = try VMMProcess(arguments + ["-incoming", address], log: directory.file("vmm.log"))
        try wait(for: "VMM that waits for the guest", seconds: 120) {
            guard next.isRunning else { throw Failure(next.epitaph()) }
            return try ListeningSocket.exists(at: channel)
        }
        try session.command(
            "cpr-update", Self.limits.merging(["mode": "transfer", "channel": channel]) { first, _ in first })
        try session.follow(next)
    }

    /// Writes the guest's state to a file, and ends the VMM; one in mode liveupdate has to live on.
    func save(to checkpoint: String) throws {
        try session.command("cpr-save", ["filename": checkpoint, "mode": machine.mode.rawValue], seconds: 300)
        if machine.mode == .liveupdate { return session.console.drain() }
        try session.command("quit")
        try session.waitForEnd()
    }

    /// In a VMM that waits: loads a guest's state, and has it go on.
    func load(from checkpoint: String) throws {
        try session.connect()
        try session.command("cpr-load", ["filename": checkpoint, "mode": machine.mode.rawValue], seconds: 300)
        guard try session.status() == "running" else {
            throw Failure("the VM is \(try session.status()) after cpr-load, and not running")
        }
    }
}
