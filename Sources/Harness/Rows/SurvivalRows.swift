import BatonRuntime
import Foundation
import HarnessSystem
import ProcessSupport

/// What a mode must hold whose checkpoint survives its process.
extension Harness {
    static let survivalRows = [
        Row("survives-volatile-ram", "RAM that ends with the process is in the checkpoint", .survivesHostReboot) {
            harness in
            var options = Machine.Options()
            options.volatileMemory = true
            let machine = try harness.machine(options)
            let before = try machine.count()
            try machine.go(.newProcess)
            try require(try machine.count() >= before, "the guest went back")
            try machine.expectProgress(past: before)
            try machine.expectLooksFine()
            return "the guest goes on"
        },
        Row(
            "survives-file-mode", "the checkpoint is readable by its owner only, and no other file is left",
            .survivesHostReboot
        ) { harness in
            let machine = try harness.machine()
            let files = try machine.files()
            try machine.save()
            var status = stat()
            guard stat(machine.checkpoint, &status) == 0 else { throw Failure.system("stat \(machine.checkpoint)") }
            try require(status.st_mode & 0o777 == 0o600, "its mode is 0\(String(status.st_mode & 0o777, radix: 8))")
            let left = try machine.files().subtracting(files)
            try require(left == ["checkpoint"], "cpr-save left \(left.sorted())")
            return "0600, \(status.st_size >> 10) KiB, of which \(status.st_blocks / 2) KiB are stored"
        },
        Row(
            "survives-full-disk", "a disk that is full leaves the file before, a running guest, and no other file",
            .survivesHostReboot
        ) { harness in
            let machine = try harness.machine()
            try machine.save()
            try machine.execute("cont")
            let before = try Data(contentsOf: URL(fileURLWithPath: machine.checkpoint))
            let files = try machine.files()
            let pid = try machine.statedPID()
            // As a full disk does, this ends a write in the middle.
            guard harness_limit_file_size(pid, 2048) == 0 else { throw Failure.system("prlimit") }
            let text = try machine.expectRefusals(stopping: true) { [try machine.saveRefusal()] }
            try require(
                try Data(contentsOf: URL(fileURLWithPath: machine.checkpoint)) == before, "the file before was changed")
            let left = try machine.files().subtracting(files)
            try require(left.isEmpty, "left behind: \(left.sorted())")
            _ = harness_limit_file_size(pid, UInt64.max)
            try machine.go(.newProcess)
            try machine.expectProgress(past: try machine.count())
            return text
        },
        Row(
            "survives-kill-during-save", "SIGKILL in the middle of a save leaves the file before or the new one, whole",
            .survivesHostReboot
        ) { harness in try killDuringSaves(harness) },
        Row(
            "survives-other-ram-size", "a VM with another size of RAM does not take the checkpoint", .survivesHostReboot
        ) {
            harness in
            var options = Machine.Options()
            options.volatileMemory = true
            let machine = try harness.machine(options)
            try machine.save()
            try machine.quit()
            try machine.startAnew(machine.arguments.map { $0.replacingOccurrences(of: "16M", with: "32M") })
            guard let text = try machine.loadRefusal(machine.checkpoint) else { throw Failure("it was taken") }
            return text
        },
        Row(
            "survives-fewer-devices", "a VM without a device that was saved does not take the checkpoint",
            .survivesHostReboot
        ) {
            harness in
            let machine = try harness.machine()
            try machine.save()
            try machine.quit()
            var rest = machine.arguments
            guard let at = rest.firstIndex(of: "virtio-rng-device") else { throw Failure("no device to leave out") }
            rest.removeSubrange(at - 1...at)
            try machine.startAnew(rest)
            guard let text = try machine.loadRefusal(machine.checkpoint) else { throw Failure("it was taken") }
            try machine.quit()
            try machine.startAnew()
            try machine.load()
            try machine.expectProgress(past: try machine.count())
            return text
        },
    ]

    /// Kills the VMM at times spread over a save.
    private static func killDuringSaves(_ harness: Harness) throws -> String {
        var outcomes = (before: 0, after: 0)
        for step in 0..<6 {
            var options = Machine.Options()
            options.volatileMemory = true
            let machine = try harness.machine(options)
            try machine.save()
            let old = try Data(contentsOf: URL(fileURLWithPath: machine.checkpoint))
            try machine.execute("cont")
            try machine.expectProgress(past: try machine.count())
            try machine.qmp.executeWithoutAnswer(
                "cpr-save", ["filename": machine.checkpoint, "mode": harness.configuration.mode])
            usleep(UInt32(step * step) * 1500)
            machine.process.signal(SIGKILL)
            _ = try machine.process.waitForExit(by: harness.configuration.deadline)
            let new = try Data(contentsOf: URL(fileURLWithPath: machine.checkpoint))
            _ = try SectionContainer(file: machine.checkpoint)
            if new == old { outcomes.before += 1 } else { outcomes.after += 1 }
            unlink(machine.pidFile)
            try machine.startAnew()
            try machine.load()
            try machine.expectProgress(past: try machine.count())
        }
        return "the file before \(outcomes.before) times, the new one \(outcomes.after) times, loaded each time"
    }
}

extension Machine {
    /// The names of what is in its directory.
    package func files() throws -> Set<String> {
        Set(try FileManager.default.contentsOfDirectory(atPath: directory.path))
    }
}
