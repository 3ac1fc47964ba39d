import Foundation
import ProcessSupport

/// The guest's pause in a restart, measured from outside, with memories of
/// several sizes and many preserved descriptors, and beside QEMU's cpr-exec.
struct PauseBenchmark {
    let vmm: String
    /// nil: not to be had.
    let qemu: QEMUInstallation?
    let repetitions: Int
    let directory: TemporaryDirectory

    private static let sizes = [("128M", 128 << 20), ("1G", 1 << 30), ("16G", 16 << 30)]
    /// Of guests that use all of it.
    private static let usedSizes = [("1G", 1 << 30), ("4G", 4 << 30)]
    private static let descriptors = 1000

    func run() throws {
        // For the thousand descriptors, here and in the VMMs.
        var limit = rlimit()
        if getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0 {
            limit.rlim_cur = limit.rlim_max
            setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
        }
        let image = directory.file("pause-counter.bin")
        try GuestBuilder().build(.counter, to: image)
        print("the guest's pause in a restart, seen from outside in its RAM (\(repetitions) times each):")
        var base = 0.0
        for (size, bytes) in Self.sizes {
            let memory = try Memory(size: size, bytes: bytes, image: image)
            let update = try compare(size, memory, steps: true)
            if base == 0 { base = update.outside.median }
        }
        for (size, bytes) in Self.usedSizes {
            guard let memory = try Memory(size: size, used: bytes, image: image) else {
                print("  \(size) in use: skipped, as this machine has not as much to spare")
                continue
            }
            _ = try compare("\(size) in use", memory, steps: false)
        }
        let memory = try Memory(size: Self.sizes[0].0, bytes: Self.sizes[0].1, image: image)
        let held = try baton(memory, Self.update, descriptors: Self.descriptors)
        row("128M, cpr-update, \(Self.descriptors) descriptors", held, base: base)
        let files = (0..<Self.descriptors).flatMap { ["-chardev", "file,id=c\($0),path=\(directory.file("c\($0)"))"] }
        let chardevs = try baton(memory, Self.update, extra: files)
        row("128M, cpr-update, \(Self.descriptors) file chardevs", chardevs, base: base)
        for count in Self.deviceCounts {
            let devices = try baton(memory, Self.update, extra: networkCards(count))
            row("128M, cpr-update, \(count) network cards", devices, base: base)
        }
        print("the guest's work in the first second after a restart, as a part of that in the second before:")
        try work("128M", Memory(size: Self.sizes[0].0, bytes: Self.sizes[0].1, image: image))
        for (size, bytes) in Self.usedSizes {
            if let memory = try Memory(size: size, used: bytes, image: image) { try work("\(size) in use", memory) }
        }
    }

    private static let worksMeasured = 5

    private func work(_ name: String, _ memory: Memory) throws {
        let samples = try measure(memory, Self.update) { probe, messages in
            try (0..<Self.worksMeasured).map { _ in try probe.work(messages) }
        }.sorted()
        let text = String(
            format: "%7.1f %%   (%.1f to %.1f)", samples[samples.count / 2], samples[0], samples.last ?? 0)
        print("  \("\(name), cpr-update".padding(toLength: 36, withPad: " ", startingAt: 0))\(text)")
    }

    /// Beside QEMU, if that is there.
    private func compare(_ name: String, _ memory: Memory, steps: Bool) throws -> Pauses {
        let update = try baton(memory, Self.update)
        row("\(name), baton cpr-update", update)
        if steps { row("\(name), baton save, exec, load", try baton(memory, Self.threeSteps)) }
        guard let qemu else { return update }
        let other = try cprExec(qemu, memory)
        row("\(name), QEMU \(qemu.version) cpr-exec", other)
        let title = "\(name), baton / QEMU".padding(toLength: 36, withPad: " ", startingAt: 0)
        print("  \(title)" + String(format: "%7.2f", update.outside.median / other.median))
        return update
    }

    private static let deviceCounts = [1, 10, 100]

    /// Cards whose socket to their network is preserved.
    private func networkCards(_ count: Int) -> [String] {
        (0..<count).flatMap { number in
            let address = "\(String(1 + number / 8, radix: 16)).\(number % 8),multifunction=on"
            return [
                "-netdev",
                "dgram,id=n\(number),local.type=unix,local.path=\(directory.file("net\(number)")),"
                    + "remote.type=unix,remote.path=\(directory.file("peer\(number)"))",
                "-device", "virtio-net-pci,netdev=n\(number),addr=\(address)",
            ]
        }
    }

    private func row(_ name: String, _ summary: Summary, more: Double? = nil) {
        let text = more.map { String(format: "  %+.2f ms", $0) } ?? ""
        print("  \(name.padding(toLength: 36, withPad: " ", startingAt: 0))\(summary)\(text)")
    }

    private func row(_ name: String, _ pauses: Pauses, base: Double? = nil) {
        row(name, pauses.outside, more: base.map { pauses.outside.median - $0 })
        print(
            "    as the VMM has it:                "
                + String(format: "%7.2f ms for the exec, %.2f for the change of hands", pauses.exec, pauses.hands))
    }

    /// An update, several times: the longest pause from outside, and the medians of both as the VMM has them.
    private struct Pauses {
        var outside: Summary
        var exec: Double
        var hands: Double
    }

    /// A guest's memory: a file in a memory file system, where there is one.
    private struct Memory {
        let size: String
        let image: String
        let page: CounterPage

        private static let parent =
            FileManager.default.isWritableFile(atPath: "/dev/shm") ? "/dev/shm" : NSTemporaryDirectory()

        /// Memory of which the guest uses little.
        init(size: String, bytes: Int, image: String, used: Int = 0) throws {
            self.size = size
            self.image = image
            page = try CounterPage(path: "\(Self.parent)/baton-bench-\(getpid())", size: bytes, used: used)
        }

        /// Memory of which the guest uses all but the first MiBs; nil where
        /// there is not twice as much.
        init?(size: String, used bytes: Int, image: String) throws {
            var room = statvfs()
            guard statvfs(Self.parent, &room) == 0, Int(room.f_bavail) * Int(room.f_frsize) > bytes * 2,
                let line = try String(contentsOfFile: "/proc/meminfo", encoding: .utf8).split(separator: "\n")
                    .first(where: { $0.hasPrefix("MemAvailable:") }),
                let available = line.split(separator: " ").dropFirst().first.flatMap({ Int($0) }),
                available << 10 > bytes * 2
            else { return nil }
            try self.init(size: size, bytes: bytes, image: image, used: bytes - (16 << 20))
        }

        /// What both VMMs are started with.
        func arguments(socket: String) -> [String] {
            [
                "-object", "memory-backend-file,id=ram,size=\(size),share=on,mem-path=\(page.path)", "-m", size,
                "-bios", "none", "-kernel", image, "-nodefaults", "-nographic", "-serial", "null", "-monitor", "none",
                "-qmp", "unix:\(socket),server=on,wait=off",
            ]
        }
    }

    // MARK: Baton

    private typealias Steps = (_ arguments: [String], _ checkpoint: String) throws -> [Data]

    private static func update(_ arguments: [String], checkpoint: String) throws -> [Data] {
        [try QMPConnection.encode("cpr-update", ["argv": arguments])]
    }

    private static func threeSteps(_ arguments: [String], checkpoint: String) throws -> [Data] {
        [
            try QMPConnection.encode("cpr-save", ["filename": checkpoint, "mode": "restart"]),
            try QMPConnection.encode("cpr-exec", ["argv": arguments + ["-S"]]),
            try QMPConnection.encode("cpr-load", ["filename": checkpoint, "mode": "restart"]),
        ]
    }

    private func baton(_ memory: Memory, _ steps: Steps, descriptors: Int = 0, extra: [String] = []) throws -> Pauses {
        var own: [(exec: Double, hands: Double)] = []
        let samples = try measure(memory, steps, descriptors: descriptors, extra: extra) { probe, messages in
            try (0..<max(repetitions, 1)).map { _ in
                let pause = try probe.pause(messages)
                own.append(try probe.ownFigures())
                return pause
            }
        }
        return Pauses(
            outside: Summary(samples), exec: Summary(own.map(\.exec)).median, hands: Summary(own.map(\.hands)).median)
    }

    private func measure(
        _ memory: Memory, _ steps: Steps, descriptors: Int = 0, extra: [String] = [],
        _ body: (PauseProbe, [Data]) throws -> [Double]
    ) throws -> [Double] {
        let socket = directory.file("pause.sock")
        let arguments =
            [vmm, "-machine", "virt,memory-backend=ram", "-cpr-enable", "restart"] + memory.arguments(socket: socket)
            + extra
        let probe = try PauseProbe(arguments, page: memory.page, socketPath: socket, log: directory.file("vmm.log"))
        for number in 0..<descriptors {
            let fd = open("/dev/null", O_RDONLY | O_CLOEXEC)
            defer { close(fd) }
            try probe.pass(fd, as: "bench\(number)")
        }
        let samples = try body(probe, try steps(arguments, directory.file("checkpoint")))
        try probe.command("quit")
        return samples
    }

    // MARK: QEMU

    private func cprExec(_ qemu: QEMUInstallation, _ memory: Memory) throws -> Summary {
        let socket = directory.file("qemu.sock"), state = "file:" + directory.file("qemu.state")
        let arguments =
            qemu.command + ["-machine", "virt,memory-backend=ram,aux-ram-share=on"] + memory.arguments(socket: socket)
        let probe = try PauseProbe(arguments, page: memory.page, socketPath: socket, log: directory.file("qemu.log"))
        let message = try QMPConnection.encode("migrate", ["uri": state])
        let samples = try (0..<max(repetitions, 1)).map { _ in
            try probe.command(
                "migrate-set-parameters", ["mode": "cpr-exec", "cpr-exec-command": arguments + ["-incoming", state]])
            let pause = try probe.pause([message], replaces: true)
            try probe.reconnect()
            return pause
        }
        try probe.command("quit")
        return Summary(samples)
    }
}
