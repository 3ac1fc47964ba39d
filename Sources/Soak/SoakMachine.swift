import Foundation
import Harness
import ProcessSupport

/// What a check of a soak has found. The check's name tells failures of one kind from others.
package struct SoakFailure: Error, CustomStringConvertible {
    package let check: String
    package let text: String
    package var description: String { "\(check): \(text)" }
}

/// A VM of a soak: a machine of the harness, and what must be true of it between two steps.
package final class SoakMachine {
    /// Which guest on which accelerator.
    package enum Kind: String, CaseIterable {
        /// The harness' guest on CPUs in software, which looks after its registers, clocks and devices.
        case harts
        /// Tests/Guests/soak on CPUs in software, at work on a disk.
        case disk
        /// The same, on a disk that QEMU's storage daemon serves.
        case served
        /// The harness' guest on KVM.
        case kvm

        /// What can be done to it.
        package var actions: [SoakAction] {
            SoakAction.allCases.filter { action in
                switch action {
                case .fullDisk: self == .disk
                case .slowStorage: self == .served
                default: true
                }
            }
        }
        /// Whether its guest is at work on a disk.
        var hasDisk: Bool { self == .disk || self == .served }
        /// What can be plugged into it: the board on KVM has no PCI slots.
        package var pluggable: [Pluggable] { self == .kvm ? [.chardev] : Pluggable.allCases }
    }

    /// What all machines of a soak have in common.
    package struct Configuration {
        /// The VMM.
        package var vmm: String
        /// The image of Tests/Guests/soak; nil if there is none, and so no machine `disk`.
        package var diskGuest: String?
        /// That for a disk which a process of its own serves.
        package var servedGuest: String?
        /// Seconds that anything may take that is due at once.
        package var timeout: Double

        package init(vmm: String, diskGuest: String?, servedGuest: String?, timeout: Double) {
            self.vmm = vmm
            self.diskGuest = diskGuest
            self.servedGuest = servedGuest
            self.timeout = timeout
        }
    }

    /// What a step has the VM's clients see.
    struct Outcome {
        /// Events that must have come.
        var expected: Set<String> = []
        /// Events that may have come, besides those that may at any time.
        var allowed: Set<String> = []
        /// Whether the VMM has what it had open.
        var keepsDescriptors = true
    }

    package let kind: Kind
    let machine: Machine
    /// The file system of the disk, if it can be filled.
    let small: SmallFileSystem?
    /// The process that serves the disk, if one does.
    let storage: StorageProcess?
    /// What is plugged.
    var plugged: Set<Pluggable> = []
    /// Numbers the new VMMs that are killed.
    var kills = 0
    /// What the VMM has open between steps.
    private var descriptors: [String: Int] = [:]
    /// A device has gone whose module the VMM has still open, and the next one will not have.
    var hasUnneededModules = false
    private var filesAtFirst: Set<String> = []
    private var descriptorsAtFirst = 0
    private var kilobytesAtFirst = 0
    private var diskRounds = [Int](repeating: -1, count: DiskPattern.slots)
    private var checks = 0

    /// More than these at the start, with nothing plugged, is growth.
    private static let moreDescriptors = 8, moreKilobytes = 24 << 10
    /// Where the guest of Tests/Guests/soak counts the rounds of its disk.
    private static let diskRoundsWord: UInt64 = 0x8040_0030
    /// Events that stop, cont and updates cause, which are part of most steps. That of a full disk may come a second later.
    private static let usual: Set = [
        "STOP", "RESUME", "CPR", "CPR_PROGRESS", "CPU_THREADS_CHANGED", "BLOCK_IO_ERROR",
    ]

    /// Starts it, and waits until its guest counts.
    package init(_ kind: Kind, _ soak: Configuration) throws {
        self.kind = kind
        var configuration = HarnessConfiguration(
            mode: "restart", baton: soak.vmm, tool: "", machine: kind == .kvm ? .kvm : .tcg)
        configuration.timeout = soak.timeout
        var options = Machine.Options()
        options.probe = true
        options.more = { try Self.more(kind, $0) }
        small = kind == .disk && geteuid() == 0 ? try SmallFileSystem("size=1m") : nil
        var storage: StorageProcess?
        switch kind {
        case .disk:
            options.kernel = soak.diskGuest
            options.diskSize = DiskPattern.size
            options.disk = small?.file("disk")
            if let small { try Self.makeDisk(small.file("disk")) }
        case .served:
            options.kernel = soak.servedGuest
            options.diskArguments = { directory in
                try Self.makeDisk(directory.file("disk"))
                storage = try StorageProcess(in: directory)
                return [
                    "-chardev", "socket,id=storage,path=\(StorageProcess.socket(directory)),reconnect-ms=100",
                    "-device", "vhost-user-blk-device,chardev=storage",
                ]
            }
        case .harts, .kvm: break
        }
        machine = try Machine(configuration, options)
        self.storage = storage
        try verify(Outcome(allowed: ["RESUME"], keepsDescriptors: false))
        filesAtFirst = try machine.files()
        descriptorsAtFirst = descriptors.values.reduce(0, +)
        kilobytesAtFirst = try machine.memoryAndThreads().kilobytes
    }

    /// More arguments of its VMM.
    private static func more(_ kind: Kind, _ directory: TemporaryDirectory) throws -> [String] {
        try directory.writeSparse("plugged-disk", size: 1 << 20)
        let ports = kind.pluggable.compactMap(\.slot).flatMap {
            ["-device", "pcie-root-port,id=\($0),chassis=\($0.dropFirst(2))"]
        }
        return ["-cpr-enable", "transfer,reboot", "-qmp", "unix:\(directory.file("qmp2")),server=on,wait=off"] + ports
    }

    private static func makeDisk(_ path: String) throws {
        guard FileManager.default.createFile(atPath: path, contents: nil), truncate(path, off_t(DiskPattern.size)) == 0
        else { throw Failure.system("make \(path)") }
    }

    /// The processes that have, had or are to have the guest.
    func processes() -> [pid_t] { machine.processes().filter { $0 != storage?.pid } }

    /// How many rounds the guest has done of its disk.
    func diskRoundsDone() throws -> UInt64 { try machine.word(Self.diskRoundsWord) }

    /// Ends all of its processes, from whichever thread.
    package func end() { Machine.endAll(of: machine.directory.path) }

    /// What the guest has done, in words.
    package var summary: String {
        let count = (try? machine.count()) ?? 0
        return "\(kind.rawValue): \(checks) times checked, the guest at \(count), line \(machine.serial?.line ?? 0)"
            + (kind.hasDisk ? ", round \(diskRounds.min() ?? 0) of its disk" : "")
    }

    /// Takes what the guest has written, so that it need not wait for that.
    package func drain() throws { try check("serial") { try machine.serial?.read() } }

    // MARK: A step

    /// Carries a step out, and looks whether all is as it must be then.
    package func perform(_ step: SoakStep) throws {
        machine.qmp.discardEvents()
        let count = try check("guest") { try machine.count() }
        let outcome = try check("action") { try carryOut(step) }
        if step.action != .reset {
            let now = try check("guest") { try machine.count() }
            guard now >= count else {
                throw SoakFailure(check: "guest", text: "it had counted to \(count) and is at \(now)")
            }
        }
        try verify(outcome)
    }

    /// The guest has been reset: lines and rounds begin anew.
    func forgetProgress() {
        machine.serial?.expectReset()
        diskRounds = diskRounds.map { _ in -1 }
    }

    // MARK: Checks

    /// Has a failure say which check it was that found something.
    @discardableResult
    private func check<T>(_ name: String, _ body: () throws -> T) throws -> T {
        do { return try body() } catch let failure as SoakFailure { throw failure } catch {
            throw SoakFailure(check: name, text: "\(error)")
        }
    }

    private func verify(_ outcome: Outcome) throws {
        checks += 1
        try check("processes") { try expectOneVMM() }
        try check("guest") {
            try machine.expectProgress(past: try machine.count())
            try machine.expectLooksFine()
        }
        try check("connections") { try machine.expectConnections() }
        if kind.hasDisk { try check("disk") { try expectDisk() } }
        try check("events") { try expectEvents(outcome) }
        try check("descriptors") { try expectDescriptors(outcome) }
        try check("memory") { try expectNoGrowth() }
        try check("files") { try expectFiles() }
    }

    /// The VMM that the PID file names has the guest, and there is no other process but its placeholder.
    private func expectOneVMM() throws {
        var expected: Set<pid_t> = []
        try eventually(
            "of the processes \(processes()) only \(expected) are left", by: machine.configuration.deadline
        ) {
            guard let pid = try? machine.statedPID() else { return false }
            let placeholder = try machine.query("query-cpr")["placeholder-pid"] as? Int
            expected = Set([pid] + (placeholder.map { [pid_t($0)] } ?? []))
            return Set(processes()) == expected
        }
    }

    /// The guest goes on with its disk, and what is there is what it has written.
    private func expectDisk() throws {
        let before = try diskRoundsDone()
        let served = storage.map { "; \($0.report)" } ?? ""
        try eventually("the guest goes on with its disk, at \(before)\(served)", by: machine.configuration.deadline) {
            try machine.expectNothingFound()
            try machine.serial?.read()
            try storage?.restartIfEnded()
            return try diskRoundsDone() != before
        }
        storage?.mayEnd = false
        let path = small?.file("disk") ?? machine.directory.file("disk")
        _ = try machine.stop()
        let rounds = try DiskPattern.verify(try Data(contentsOf: URL(fileURLWithPath: path)))
        try machine.execute("cont")
        for (slot, (old, new)) in zip(diskRounds, rounds).enumerated() where new < old {
            throw Failure("slot \(slot) was at round \(old) and is at \(new)")
        }
        diskRounds = rounds
    }

    private func expectEvents(_ outcome: Outcome) throws {
        let names = Set(machine.qmp.events.compactMap { $0["event"] as? String })
        let missing = outcome.expected.subtracting(names)
        try require(missing.isEmpty, "no \(missing.sorted().joined(separator: ", "))")
        let others = names.subtracting(Self.usual).subtracting(outcome.expected).subtracting(outcome.allowed)
        let found = machine.qmp.events.filter { others.contains($0["event"] as? String ?? "") }
        try require(others.isEmpty, "unexpected: \(found)")
        machine.qmp.discardEvents()
    }

    private func expectDescriptors(_ outcome: Outcome) throws {
        if outcome.keepsDescriptors {
            guard hasUnneededModules else { return try machine.expectDescriptors(descriptors) }
            return try expectNoMoreDescriptors(hasUpdated: outcome.expected.contains("CPR_UPDATED"))
        }
        let most = descriptorsAtFirst + Self.moreDescriptors + 4 * plugged.count
        // What an update has left is closed in a moment.
        try eventually("of the descriptors \(descriptors) \(most) at most are left", by: machine.configuration.deadline)
        {
            descriptors = try machine.descriptors()
            return descriptorsAtFirst == 0 || descriptors.values.reduce(0, +) <= most
        }
    }

    private func expectNoMoreDescriptors(hasUpdated: Bool) throws {
        let before = descriptors
        try eventually("of \(descriptors) no more than \(before) are left", by: machine.configuration.deadline) {
            descriptors = try machine.descriptors()
            return descriptors.allSatisfy { $0.value <= before[$0.key] ?? 0 }
        }
        if hasUpdated { hasUnneededModules = false }
    }

    private func expectNoGrowth() throws {
        let (kilobytes, _) = try machine.memoryAndThreads()
        try require(
            kilobytesAtFirst == 0 || kilobytes <= kilobytesAtFirst + Self.moreKilobytes,
            "at first \(kilobytesAtFirst) KiB, now \(kilobytes)")
    }

    private func expectFiles() throws {
        guard !filesAtFirst.isEmpty else { return }
        // A VMM that was killed as it waited leaves its socket.
        let known: Set = ["checkpoint", "probe.log", "channel"]
        let left = try machine.files().subtracting(filesAtFirst).subtracting(known)
            .subtracting(plugged.flatMap(\.files))
        try require(left.isEmpty, "left behind: \(left.sorted())")
    }

    // MARK: After a failure

    /// Writes what there is to read about it into a directory.
    package func keepLogs(in directory: String) {
        var text = "\(kind.rawValue): \(machine.arguments.joined(separator: " "))\n\(machine.process.report)\n"
        text += "processes: \(machine.processes())\nplugged: \(plugged.map(\.rawValue).sorted())\n"
        text += "the guest at \((try? machine.count()) ?? 0)\n"
        if kind.hasDisk {
            let words = (0..<5).map { (try? machine.word(Self.diskRoundsWord + 8 + 8 * UInt64($0))) ?? 0 }
            text += "the request that was not carried out: slot \(words[0]), step \(words[1]), round \(words[2]), "
            text += "word \(Int64(bitPattern: words[3])) is 0x\(String(words[4], radix: 16))\n"
        }
        if let storage { text += "\(storage.report)\n" }
        try? text.write(toFile: "\(directory)/\(kind.rawValue).txt", atomically: false, encoding: .utf8)
        for name in ["log", "probe.log"] {
            try? FileManager.default.copyItem(
                atPath: machine.directory.file(name), toPath: "\(directory)/\(kind.rawValue)-\(name)")
        }
    }
}
