import Foundation
import Harness
import ProcessSupport

extension Pluggable {
    /// The port that its device is plugged into.
    var slot: String? {
        switch self {
        case .rng: "rp1"
        case .disk: "rp2"
        case .net: "rp3"
        case .chardev: nil
        }
    }

    /// Files that are there while it is plugged.
    var files: [String] {
        switch self {
        case .rng, .disk: []
        case .net: ["plugged-net"]
        case .chardev: ["plugged-socket", "plugged-file"]
        }
    }

    fileprivate var device: String { "plugged-\(rawValue)-device" }
    fileprivate var backEnd: String { "plugged-\(rawValue)-end" }
}

/// What comes and goes.
extension SoakMachine {
    private static let kept = "kept over updates"

    /// Does nothing if it is there.
    func plug(_ what: Pluggable?) throws -> Outcome {
        guard let what, !plugged.contains(what) else { return Outcome() }
        let directory = machine.directory
        var device: [String: Any]?
        switch what {
        case .rng:
            try machine.execute(
                "object-add", ["qom-type": "rng-random", "id": what.backEnd, "filename": "/dev/urandom"])
            device = ["driver": "virtio-rng-pci", "rng": what.backEnd]
        case .disk:
            try machine.execute(
                "blockdev-add",
                ["driver": "file", "node-name": what.backEnd, "filename": directory.file("plugged-disk")])
            device = ["driver": "virtio-blk-pci", "drive": what.backEnd]
        case .net:
            try machine.execute(
                "netdev_add",
                [
                    "type": "stream", "id": what.backEnd, "server": true,
                    "addr": ["type": "unix", "path": directory.file("plugged-net")],
                ])
            device = ["driver": "virtio-net-pci", "netdev": what.backEnd]
        case .chardev: try addChardevs()
        }
        if let device, let slot = what.slot {
            try machine.execute("device_add", device.merging(["bus": slot, "id": what.device]) { $1 })
        }
        plugged.insert(what)
        return Outcome(keepsDescriptors: false)
    }

    /// Does nothing if it is not there.
    /// - Parameter updates: an update at once, whether the guest has let go of it or not.
    func unplug(_ what: Pluggable?, updates: Bool = false) throws -> Outcome {
        guard let what, plugged.contains(what) else { return Outcome() }
        if what.slot != nil {
            try machine.execute("device_del", ["id": what.device])
        }
        if updates { try update() }
        if what.slot != nil { try expectDeleted(what) }
        switch what {
        case .rng: try machine.execute("object-del", ["id": what.backEnd])
        case .disk: try machine.execute("blockdev-del", ["node-name": what.backEnd])
        case .net: try machine.execute("netdev_del", ["id": what.backEnd])
        case .chardev: try removeChardevs()
        }
        plugged.remove(what)
        hasUnneededModules = true
        return Outcome(expected: updates ? ["CPR_UPDATED"] : [], keepsDescriptors: false)
    }

    /// - Returns: events that this causes.
    func unplugAll() throws -> Set<String> {
        var events: Set<String> = []
        for what in plugged.sorted(by: { $0.rawValue < $1.rawValue }) { events.formUnion(try unplug(what).expected) }
        return events
    }

    /// The guest turns the slot's power off, if that is on.
    private func expectDeleted(_ what: Pluggable) throws {
        func isDeletion(_ event: [String: Any]) -> Bool { event["event"] as? String == "DEVICE_DELETED" }
        try eventually("the guest lets go of '\(what.device)' (DEVICE_DELETED)", by: machine.configuration.deadline) {
            // A guest whose lines nobody takes waits for that.
            try machine.serial?.read()
            _ = try machine.status()
            return machine.qmp.events.contains(where: isDeletion)
        }
        let data = try machine.qmp.waitForEvent("DEVICE_DELETED", by: machine.configuration.deadline)
        try require(data["device"] as? String == what.device, "DEVICE_DELETED says \(data)")
    }

    // MARK: Chardevs

    private func addChardevs() throws {
        let directory = machine.directory
        func add(_ id: String, _ type: String, _ data: [String: Any]) throws {
            try machine.execute("chardev-add", ["id": id, "backend": ["type": type, "data": data]])
        }
        try add(
            "plugged-socket", "socket",
            ["addr": ["type": "unix", "data": ["path": directory.file("plugged-socket")]]])
        try add("plugged-file", "file", ["out": directory.file("plugged-file")])
        try add("plugged-ring", "ringbuf", ["size": 4096])
        try machine.execute("ringbuf-write", ["device": "plugged-ring", "data": Self.kept])
    }

    private func removeChardevs() throws {
        let data = try machine.execute("ringbuf-read", ["device": "plugged-ring", "size": Self.kept.utf8.count])
        try require(data as? String == Self.kept, "the ring buffer has \(data) and not '\(Self.kept)'")
        for id in ["plugged-socket", "plugged-file", "plugged-ring"] {
            try machine.execute("chardev-remove", ["id": id])
        }
        // Who made it removes it.
        unlink(machine.directory.file("plugged-file"))
    }
}
