import Foundation
import ProcessSupport

/// SeaBIOS under KVM in the lab, and a boot sector (`Tests/Guests/lab/sector.S`) that reads the disk that it came
/// from through the BIOS, a sector each tick of a timer.
enum LabFirmware {
    static let diskName = "bios-disk"
    private static let sectors = 0x800
    /// Sectors from one update to the next: at other ticks, in the BIOS and out of it.
    private static let sectorsBetween = 7

    /// The image: in each sector but the first, its number in each word.
    static func makeDisk(directory: TemporaryDirectory) throws {
        let sector = directory.file("sector.bin")
        try GuestBuilder().buildBootSector(to: sector)
        var image = try Data(contentsOf: URL(fileURLWithPath: sector))
        guard image.count == 512 else { throw Failure("the boot sector has \(image.count) bytes") }
        for number in 1..<UInt16(sectors) {
            for _ in 0..<256 { image += [UInt8(truncatingIfNeeded: number), UInt8(number >> 8)] }
        }
        try directory.write(diskName, image)
    }

    /// - Returns: what was seen.
    static func run(_ context: LabCase.Context) throws -> String {
        let directory = try TemporaryDirectory.scratch(), start = Clock.now
        let updates = context.updates, disk = directory.file("disk.img"), socket = directory.file("qmp.sock")
        try FileManager.default.copyItem(atPath: "\(context.directory)/\(diskName)", toPath: disk)
        let arguments = [
            context.vmm, "-M", "microvm,memory-backend=ram", "-accel", "kvm", "-cpu", "host", "-m", "64M",
            "-object", "memory-backend-memfd,id=ram,size=64M,share=on", "-cpr-enable", "restart", "-only-cpr-capable",
            "-sandbox", "on",
            "-bios", context.files.firmware, "-drive", "file=\(disk),format=raw,if=none,id=disk",
            "-device", "virtio-blk-device,drive=disk", "-nodefaults", "-display", "none", "-serial", "stdio",
            "-monitor", "none", "-qmp", "unix:\(socket),server=on,wait=off",
        ]
        let session = try Session(arguments: arguments, socketPath: socket, directory: directory.path)
        var numbers: [Int] = [], complaint: String?
        session.console.onLine = { line in
            // Behind what SeaBIOS has said.
            guard let range = line.range(of: "sector ") else { return }
            let text = line[range.upperBound...]
            if let number = Int(text, radix: 16) { numbers.append(number) } else { complaint = line }
        }
        func awaitSectors(_ count: Int) throws {
            let target = numbers.count + count
            try session.wait(for: "further sector", seconds: 120) {
                if let complaint { throw Failure("the boot sector says: \(complaint)") }
                return numbers.count >= target
            }
        }
        try session.connect()
        try awaitSectors(sectorsBetween)
        let booted = Clock.now - start
        for number in 0..<updates {
            do {
                try session.command("cpr-update", ["argv": arguments, "timeout-ms": 100_000, "downtime-ms": 20_000])
                try awaitSectors(sectorsBetween)
            } catch {
                throw Failure("update \(number + 1): \(error)")
            }
        }
        try session.command("quit")
        try session.waitForEnd()
        for (index, number) in numbers.enumerated() where number != index % (sectors - 1) + 1 {
            throw Failure("sector \(number) came in place of \(index % (sectors - 1) + 1)")
        }
        return String(format: "boots in %.0f s; ", booted)
            + "\(updates) updates, \(numbers.count) sectors read in order"
    }
}
