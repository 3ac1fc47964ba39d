import Foundation
import Harness
import ProcessSupport

/// What is done while the storage process stands still.
package enum StandstillDeed: String, CaseIterable {
    /// An update.
    case update
    /// An update to a VMM that ends.
    case refusal
    /// An update to a VMM that waits.
    case transfer
    /// `cpr-save`, `cpr-exec`, `cpr-load`.
    case steps
    /// `stop`, which has the storage process finish what it has in hand.
    case stop
    /// `cont`: the storage process is to serve the disk again.
    case cont
    /// A checkpoint, the end of the process, a new start.
    case reboot
    /// The end of the storage process, and another one.
    case kill
    /// The same, and an update before the other one is there.
    case killAndUpdate = "kill-and-update"
}

/// A disk that a process of its own serves, which is late.
extension SoakMachine {
    /// The disk waits for its process. Everything else goes on, and nothing is lost.
    func slowStorage(_ deed: StandstillDeed?) throws -> Outcome {
        guard let storage else { return Outcome() }
        let gone = deed == .reboot ? try unplugAll() : []
        if deed == .cont { _ = try machine.stop() }
        // It may break its connection or itself when it is told to let go of a disk while it has requests in hand.
        storage.mayEnd = deed == .stop || deed == .cont || deed == .reboot
        try storage.stop(by: machine.configuration.deadline)
        // A VMM that goes on would find the process so.
        defer { storage.goOn() }
        if deed != .cont { try expectDiskStands() }
        var outcome = Outcome(keepsDescriptors: false)
        switch deed {
        case nil: break
        case .update:
            try update()
            outcome.expected = ["CPR_UPDATED"]
        case .refusal:
            let reason = try machine.update(["/bin/false"] + machine.arguments.dropFirst())
            try require(reason != nil, "/bin/false has the guest")
            outcome.allowed = ["CPR_ROLLED_BACK"]
        case .transfer: outcome = try transfer()
        case .steps:
            outcome = try threeSteps(nil)
            outcome.keepsDescriptors = false
        case .stop:
            let count = try machine.stop()
            try machine.expectStopped(at: count, "paused")
            storage.goOn()
            try machine.execute("cont")
        case .cont: try machine.execute("cont")
        case .reboot: outcome = try rebootWhileStorageStands(storage)
        case .kill: try storage.replace(by: machine.configuration.deadline)
        case .killAndUpdate:
            try storage.replace(by: machine.configuration.deadline) { try update() }
            outcome.expected = ["CPR_UPDATED"]
        }
        if deed != .reboot { try expectGuestGoesOn() }
        outcome.allowed.formUnion(gone)
        return outcome
    }

    /// What is in hand stays there, while the guest counts on.
    private func expectDiskStands() throws {
        try eventually("the guest's disk stands still", by: machine.configuration.deadline) {
            let rounds = try diskRoundsDone()
            try expectGuestGoesOn()
            return try diskRoundsDone() == rounds
        }
    }

    /// The guest writes its lines, whatever its disk does.
    private func expectGuestGoesOn() throws { try machine.expectLooksFine() }

    /// A save needs what the storage process has in hand, and fails without it.
    private func rebootWhileStorageStands(_ storage: StorageProcess) throws -> Outcome {
        machine.mode = "reboot"
        do {
            defer { machine.mode = "restart" }
            try machine.save()
        } catch is QMPClient.Refusal {
            storage.goOn()
            if try machine.status() != "running" { try machine.execute("cont") }
            return Outcome(keepsDescriptors: false)
        }
        storage.goOn()
        return try rebootFromCheckpoint()
    }
}
