import Foundation
import ProcessSupport

/// Disks that come and go in root ports while the guest runs, by QMP and Linux' own driver for hot plug, pciehp, over
/// updates whose command line knows nothing of them. The guest's program writes to each and reads it back while it is
/// there (`Tests/Guests/lab/plugged.c`).
struct LabHotPlug {
    /// When the VMM is replaced: while the guest finds the disk, while it lets go of it, and while it works on it.
    private enum Moment: CaseIterable { case coming, atWork, going }
    private static let rounds = 2
    private static let node = "plugged", device = "disk"

    private let guest: LabGuest

    /// - Returns: what was seen.
    static func run(_ context: LabCase.Context) throws -> String {
        var machine = LabMachine()
        (machine.bus, machine.hasCards, machine.rootPorts) = (.pci, false, 2)
        let test = LabHotPlug(guest: try LabGuest(machine, context))
        try test.guest.boot()
        let image = try test.guest.directory.writeSparse("plugged.img", size: 4 << 20)
        var times = 0
        for round in 0..<rounds {
            for moment in Moment.allCases {
                do {
                    try test.plug(image, slot: round, moment, times: times)
                } catch {
                    throw Failure("disk \(times + 1), replaced while it is \(moment): \(error)")
                }
                times += 1
            }
        }
        try test.guest.finish()
        return
            "\(times) disks came, were worked on (\(test.count("plugged-blocks")) blocks) and went, with an update of "
            + "each; beside \(test.guest.summary)"
    }

    private func count(_ work: String) -> Int { guest.reports.last?.work[work] ?? 0 }

    private func awaitMore(_ work: String, than before: Int) throws {
        try guest.wait(for: "more than \(before) of \(work)", seconds: 240) { count(work) > before }
    }

    /// - Parameter times: how many disks there have been.
    private func plug(_ image: String, slot: Int, _ moment: Moment, times: Int) throws {
        let session = guest.session
        try session.command("blockdev-add", ["driver": "file", "node-name": Self.node, "filename": image])
        try session.command(
            "device_add",
            [
                "driver": "virtio-blk-pci", "bus": "rp\(slot)", "id": Self.device, "drive": Self.node,
                "serial": "plugged",
            ])
        if moment == .coming { try guest.update() }
        try awaitMore("plugged", than: times)
        try awaitMore("plugged-blocks", than: count("plugged-blocks"))
        if moment == .atWork { try guest.update() }
        try awaitMore("plugged-blocks", than: count("plugged-blocks"))
        guard count("unplugged") == times else { throw Failure("it went by itself") }
        try session.command("device_del", ["id": Self.device])
        // Linux blinks for five seconds.
        if moment == .going { try guest.update() }
        try awaitMore("unplugged", than: times)
        // What the disk was on is free when the guest has turned the slot's power off.
        try guest.wait(for: "end of the device", seconds: 120) {
            do { try session.command("blockdev-del", ["node-name": Self.node]) } catch { return false }
            return true
        }
    }
}
