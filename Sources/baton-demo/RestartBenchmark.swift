import Foundation
import ProcessSupport

/// The guest's pause over many restarts, phase by phase, from the VMM's own clock readings.
struct RestartBenchmark {
    let vmm: String
    let repetitions: Int
    let directory: TemporaryDirectory

    private static let phases = [
        ("pause", "pause"), ("save", "writing the checkpoint"), ("wait-exec", "waiting for cpr-exec"),
        ("exec", "exec to main"), ("start-up", "main to a machine"), ("wait-load", "waiting for cpr-load"),
        ("load", "loading the checkpoint"), ("resume", "resuming"),
    ]

    func run() throws {
        let guest = try Guest.counter(directory: directory)
        let socketPath = directory.file("qmp.sock"), checkpoint = directory.file("checkpoint")
        let arguments = RunCommand.commandLine(
            vmm: vmm, machine: GuestMachine.virt.options(bios: "none"), guest: guest, directory: directory,
            socketPath: socketPath)
        let session = try Session(arguments: arguments, socketPath: socketPath, directory: directory.path)
        try session.connect()
        try session.wait(for: "report of the guest", seconds: 30) { session.console.report != nil }
        var samples: [String: [Double]] = [:]
        for _ in 0..<max(repetitions, 1) {
            try session.command("cpr-save", ["filename": checkpoint, "mode": "restart"])
            try session.replace(with: arguments + ["-S"])
            try session.command("cpr-load", ["filename": checkpoint, "mode": "restart"])
            let cpr = try session.command("query-cpr") as? [String: Any]
            let update = cpr?["last-update"] as? [String: Any] ?? [:]
            for (name, value) in update {
                if let value = value as? Int { samples[name, default: []].append(Double(value) / 1000) }
            }
        }
        print("restart, counting guest with 512 MB (\(max(repetitions, 1)) times):")
        for (key, text) in Self.phases {
            guard let values = samples["\(key)-us"] else { continue }
            let indent = key == "pause" ? "  " : "    "
            print("\(indent)\((indent + text).padding(toLength: 34, withPad: " ", startingAt: 0))\(Summary(values))")
        }
    }
}
