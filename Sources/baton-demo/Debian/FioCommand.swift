import ArgumentParser
import Foundation
import ProcessSupport

/// `baton-demo fio`: Debian's fio writes to a raw and to a qcow2 disk, and verifies what it reads, while the VMM is
/// replaced.
struct FioCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "fio", abstract: "Replaces the VMM under Debian, whose fio writes to and verifies two disks.")

    @OptionGroup var debian: DebianOptions

    @Option(help: "How often to replace the VMM for each disk.")
    var updates = 30

    @Option(help: "MiB that fio writes, and then reads, in each of its rounds.")
    var size = 64

    /// A disk that fio works on.
    private struct Disk {
        let format: String
        let path: String
        /// In the guest, where the root and the seed come before.
        let device: String
    }

    func run() throws {
        setvbuf(stdout, nil, Int32(_IOLBF), 0)
        let progress = Progress()
        guard let image = try debian.image(progress: progress) else { return }
        let directory = try TemporaryDirectory.scratch()
        let disks = [
            Disk(format: "raw", path: directory.file("fio.raw"), device: "/dev/vdc"),
            Disk(format: "qcow2", path: directory.file("fio.qcow2"), device: "/dev/vdd"),
        ]
        var options: [String] = []
        for disk in disks {
            try Tool.require(["qemu-img", "create", "-q", "-f", disk.format, disk.path, "\(size)M"])
            options += [
                "-drive", "file=\(disk.path),format=\(disk.format),if=none,id=\(disk.format)",
                "-device", "virtio-blk-pci,drive=\(disk.format)",
            ]
        }
        let machine = try debian.boot(image, in: directory, extra: options, progress: progress)
        var done = 0
        for disk in disks { done += try work(on: disk, machine, updatesBefore: done, progress: progress) }
        try machine.shutDown()
        for disk in disks where disk.format != "raw" {
            try Tool.require(["qemu-img", "check", "-q", "-f", disk.format, disk.path])
        }
    }

    /// fio's rounds, each of which writes all of the disk and verifies it, until the VMM has been replaced often enough.
    /// - Returns: how often that was.
    private func work(
        on disk: Disk, _ machine: DebianMachine, updatesBefore: Int, progress: Progress
    ) throws -> Int {
        let script = """
            set -e
            sectors=$(cat /sys/block/\(disk.device.dropFirst(5))/size)
            [ $sectors = \(size * 2048) ] || { echo "the disk has $sectors sectors"; exit 1; }
            rounds=0
            while [ ! -e /run/fio.stop ]; do
                fio --name=\(disk.format) --filename=\(disk.device) --direct=1 --ioengine=libaio --iodepth=16 \
                    --rw=randwrite --bsrange=4k-64k --size=\(size)M --verify=crc32c --verify_fatal=1 \
                    --randseed=$rounds --output=/run/fio.out || { cat /run/fio.out; exit 1; }
                rounds=$((rounds + 1))
                echo round $rounds
            done
            rm /run/fio.stop
            echo end
            """
        let fio = try BackgroundProcess(machine.ssh + [script])
        func rounds() -> Int { fio.said.split(separator: "\n").count { $0.hasPrefix("round ") } }
        func wait(_ what: String, until condition: () -> Bool) throws {
            try machine.session.wait(for: what, seconds: 900) {
                guard fio.isRunning || condition() else { throw Failure("fio has ended: \(fio.said)") }
                return condition()
            }
        }
        try wait("first round of fio") { rounds() >= 1 }
        for number in 1...max(updates, 1) {
            let text = try machine.update(number: updatesBefore + number)
            progress.say("\(disk.format): \(text), \(rounds()) rounds")
            // At another point of fio's work each time.
            let pause = Clock.now + Double(number % 7) * 0.3
            try machine.session.wait(for: "time to pass", seconds: 60) { Clock.now > pause }
        }
        let before = rounds()
        try wait("further rounds of fio") { rounds() >= before + 2 }
        try machine.run("touch /run/fio.stop")
        try wait("end of fio") { fio.said.split(separator: "\n").contains("end") }
        progress.say(
            "\(disk.format): \(updates) updates, fio has written and verified \(rounds() * size) MiB in \(rounds()) rounds, "
                + "nothing lost")
        return updates
    }
}
