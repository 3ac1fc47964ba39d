import BatonRuntime
import CBaton
import Foundation
import Glibc
import TestSupport
import Testing

/// What a VM takes from a checkpoint, and what a refusal leaves: a VM of test
/// devices and memory, with the real controller.
@Suite("Loading a checkpoint") struct CheckpointLoadTests {
    /// A device with one word of state, which it may refuse.
    private final class Register: Device {
        let stateName: String
        var value: UInt64 = 0
        var refuses = false
        private(set) var resets = 0
        private(set) var loads = 0
        init(_ name: String) { stateName = name }
        func reset() {
            value = 0
            resets += 1
        }
        func save(to writer: inout StateWriter) { writer.put("value", value) }
        func loader(of reader: StateReader) throws(VMMError) -> () -> Void {
            let value = try reader.unsigned("value")
            if refuses { throw VMMError("the register refuses") }
            return { [self] in
                self.value = value
                loads += 1
            }
        }
    }

    private final class Mode: CprMode {
        let name: String
        let summary = "for tests"
        let neverHangs = true
        let promises: CprModePromises
        init(_ name: String, _ promises: CprModePromises) { (self.name, self.promises) = (name, promises) }
        func volatileBlocks(cpr: CprController) -> [RAMBlock] {
            promises.contains(.survivesHostReboot) ? cpr.memory.blocks.filter { !$0.isPersistent } : []
        }
    }

    /// Makes blocks of the descriptors that the test gives it.
    private final class Files: AllocatorHook {
        let hookName = "test"
        var files: [String: String] = [:]
        var seals = true
        func allocate(_ request: RAMRequest, memory: GuestMemory) throws(VMMError) -> RAMBlock? {
            let path = files[request.name]
            let block = try memory.preservedBlock(request, shared: true, origin: hookName) { () throws(VMMError) in
                guard let path else {
                    guard seals else {
                        let fd = cbaton_memfd_create(request.name, CBATON_MFD_ALLOW_SEALING)
                        ftruncate(fd, off_t(request.maxLength))
                        return fd
                    }
                    return try Mapping.createMemfd(name: request.name, length: request.maxLength, sealSize: true)
                        .release()
                }
                let fd = try FD.open(path, O_RDWR | O_CREAT)
                ftruncate(fd.raw, off_t(request.maxLength))
                return fd.release()
            }
            if let path, GuestMemory.canBeMarked(block.fd) { block.file = path }
            return block
        }
    }

    private final class Machine {
        let vm: VirtualMachine
        let memory = GuestMemory()
        let cpr: CprController
        let hook = Files()
        let registry = ModuleRegistry()
        let devices = [Register("one"), Register("two")]
        let ram: RAMBlock
        let reboot = Mode("test-reboot", .survivesHostReboot)
        let restart = Mode("test-restart", [.samePID, .keepsConnections, .executes])
        var events: [String] = []

        init(inherited: CprState? = nil, file: String? = nil, seals: Bool = true, size: Int = 4 << 20) throws {
            vm = try VirtualMachine()
            cpr = CprController(
                vm: vm, memory: memory, registry: registry, inherited: inherited, startedAt: EventLoop.now)
            hook.files["ram"] = file
            hook.seals = seals
            memory.addHook(hook)
            cpr.enable(reboot)
            cpr.enable(restart)
            ram = try memory.allocate(RAMRequest(name: "ram", usedLength: size))
            for device in devices { try vm.add(device) }
            vm.onEvent { [unowned self] name, _ in events.append(name) }
        }

        var word: UInt64 {
            get { ram.host.load(fromByteOffset: 8192, as: UInt64.self) }
            set { ram.host.storeBytes(of: newValue, toByteOffset: 8192, as: UInt64.self) }
        }

        /// What the next process finds, with descriptors of its own.
        func stateForExec() -> CprState {
            var state = cpr.stateForExec(mode: restart)
            for index in state.ram.indices { state.ram[index].fd = dup(state.ram[index].fd) }
            return state
        }
    }

    private func message(_ body: () throws(VMMError) -> Void) -> String {
        do throws(VMMError) { try body() } catch { return error.message }
        return "accepted"
    }

    /// Runs and stops, so that there is something to save.
    private func run(_ machine: Machine, _ value: UInt64) throws {
        try machine.vm.start()
        machine.word = value
        for (index, device) in machine.devices.enumerated() { device.value = value + UInt64(index) }
    }

    /// A saved container, changed by a test, in a file.
    private func change(
        _ path: String, _ directory: TemporaryDirectory, _ section: String, _ edit: (StateReader) throws -> StateWriter?
    ) throws -> String {
        let old = try SectionContainer(file: path)
        var new = SectionContainer(kind: .checkpoint)
        for item in old.sections {
            guard item.name == section else {
                new.add(item)
                continue
            }
            if let writer = try edit(try old.reader(item)) { new.add(section, version: item.version, writer) }
        }
        var bytes = new.encoded()
        if old.section("ram-contents") != nil {
            let data = [UInt8](try Data(contentsOf: URL(fileURLWithPath: path)))
            let begin = (old.encoded().count + 4095) & ~4095
            bytes += [UInt8](repeating: 0, count: -bytes.count & 4095) + data[begin...]
        }
        return try directory.write("changed", Data(bytes))
    }

    @Test("A device that refuses its section leaves memory and every other device as they were")
    func refusal() throws {
        let directory = try TemporaryDirectory()
        let file = directory.file("state")
        let old = try Machine()
        try run(old, 7)
        try old.cpr.save(to: file, mode: "test-reboot")

        let new = try Machine()
        new.devices[1].refuses = true
        #expect(
            message { () throws(VMMError) in try new.cpr.load(from: file, mode: "test-reboot") }
                .hasSuffix("the register refuses"))
        #expect(new.word == 0 && new.devices[0].value == 0 && new.devices[0].loads == 0)
        #expect(new.vm.runState == .prelaunch)
        new.devices[1].refuses = false
        try new.cpr.load(from: file, mode: "test-reboot")
        #expect(new.word == 7 && new.devices.map(\.value) == [7, 8])
        #expect(new.vm.isRunning)
    }

    @Test("Every block of the VM is in a checkpoint, once")
    func blocks() throws {
        let directory = try TemporaryDirectory()
        let file = directory.file("state")
        let old = try Machine()
        try run(old, 7)
        try old.cpr.save(to: file, mode: "test-reboot")
        let new = try Machine()
        func load(_ path: String) -> String {
            message { () throws(VMMError) in try new.cpr.load(from: path, mode: "test-reboot") }
        }
        let none = try change(file, directory, "ram") { _ in
            var writer = StateWriter()
            writer.put("count", 0 as UInt64)
            return writer
        }
        #expect(load(none) == "\(none) does not have the RAM block 'ram' of this VM")
        let twice = try change(file, directory, "ram") { reader in
            var writer = StateWriter()
            writer.put("count", 2 as UInt64)
            for index in 0..<2 {
                writer.put("\(index).name", "ram")
                writer.put("\(index).used-length", try reader.unsigned("0.used-length"))
            }
            return writer
        }
        #expect(load(twice) == "\(twice) has the RAM block 'ram' twice")
        let contents = try change(file, directory, "ram-contents") { reader in
            var writer = StateWriter()
            writer.put("count", 2 as UInt64)
            for index in 0..<2 {
                writer.put("\(index).name", "ram")
                for field in ["length", "offset", "crc32c"] {
                    writer.put("\(index).\(field)", try reader.unsigned("0.\(field)"))
                }
            }
            return writer
        }
        #expect(load(contents) == "\(contents) has the contents of RAM block 'ram' twice")
        let absent = try change(file, directory, "ram-contents") { _ in
            var writer = StateWriter()
            writer.put("count", 0 as UInt64)
            return writer
        }
        #expect(load(absent).contains("does not have the contents of RAM block 'ram'"))
        #expect(new.word == 0)
        #expect(load(file) == "accepted")
    }

    @Test("A checkpoint of memory that stays in place needs the process that was executed after it")
    func restartNeedsItsMemory() throws {
        let directory = try TemporaryDirectory()
        let (file, later) = (directory.file("state"), directory.file("later"))
        let old = try Machine()
        try run(old, 7)
        try old.cpr.save(to: file, mode: "test-restart")
        let stranger = try Machine()
        #expect(
            message { () throws(VMMError) in try stranger.cpr.load(from: file, mode: "test-restart") }
                .contains("only the process that takes its guest over can load it"))
        #expect(stranger.vm.runState == .prelaunch && stranger.devices[0].loads == 0)

        // The guest has run since: what was saved before is of other memory.
        try old.vm.start()
        try old.cpr.save(to: later, mode: "test-restart")
        let new = try Machine(inherited: old.stateForExec())
        #expect(
            message { () throws(VMMError) in try new.cpr.load(from: file, mode: "test-restart") }
                .contains("is of another save than the guest memory"))
        #expect(message { () throws(VMMError) in try new.vm.start() } == "the VM waits for cpr-load")
        try new.cpr.load(from: later, mode: "test-restart")
        #expect(new.vm.isRunning && new.word == 7)
        new.word = 8
        #expect(old.word == 8, "the same memory")
    }

    @Test("A successor refuses contents for memory that it has taken over")
    func contentsForInheritedMemory() throws {
        let directory = try TemporaryDirectory()
        let (file, contents) = (directory.file("state"), directory.file("contents"))
        let old = try Machine()
        try run(old, 7)
        try old.cpr.save(to: contents, mode: "test-reboot")
        try old.vm.start()
        try old.cpr.save(to: file, mode: "test-restart")
        // The good one, with the contents of the other behind it.
        let other = try SectionContainer(file: contents)
        var bad = try SectionContainer(file: file)
        bad.add(try #require(other.section("ram-contents")))
        let data = try Data(contentsOf: URL(fileURLWithPath: contents))
        var bytes = Data(bad.encoded())
        bytes += Data(count: -bytes.count & 4095) + data.dropFirst((other.encoded().count + 4095) & ~4095)
        let path = try directory.write("bad", bytes)

        let new = try Machine(inherited: old.stateForExec())
        #expect(
            message { () throws(VMMError) in try new.cpr.load(from: path, mode: "test-restart") }
                .contains("which this process has taken over with what is in it"))
        try new.cpr.load(from: file, mode: "test-restart")
        #expect(new.word == 7)
    }

    private static let marks: Bool = {
        guard let directory = try? TemporaryDirectory(prefix: try Products.cache("load-test") + "/mark"),
            let fd = try? FD.open(directory.file("file"), O_RDWR | O_CREAT)
        else { return false }
        return GuestMemory.canBeMarked(fd.raw)
    }()
    private static let whyNoMarks: Comment = "needs a file system with extended attributes of users"

    @Test(
        "A checkpoint whose memory stays in a file is loaded once, and not after the guest has run",
        .enabled(if: marks, whyNoMarks))
    func memoryInAFile() throws {
        let directory = try TemporaryDirectory(prefix: try Products.cache("load-test") + "/ram")
        let (file, ram) = (directory.file("state"), directory.file("ram"))
        let old = try Machine(file: ram)
        try run(old, 7)
        try old.cpr.save(to: file, mode: "test-reboot")
        #expect(try SectionContainer(file: file).section("ram-contents") == nil)
        let paused = try Machine(file: ram)
        // What does not run changes nothing, and can be loaded again.
        let second = try Machine(file: ram)
        let stopped = try change(file, directory, "global") { reader in
            var writer = StateWriter()
            writer.put("run-state", "paused")
            writer.put("machine", try reader.string("machine"))
            writer.put("memory-id", try reader.string("memory-id"), optional: true)
            return writer
        }
        try paused.cpr.load(from: stopped, mode: "test-reboot")
        #expect(paused.vm.runState == .paused)
        try second.cpr.load(from: file, mode: "test-reboot")
        #expect(second.vm.isRunning && second.word == 7)
        let third = try Machine(file: ram)
        #expect(
            message { () throws(VMMError) in try third.cpr.load(from: file, mode: "test-reboot") }
                .contains("RAM block 'ram' is not as it was when \(file) was saved"))
        #expect(third.vm.runState == .prelaunch && third.devices[0].loads == 0)
    }

    @Test(
        "Neither cont nor a reset after a save leaves a checkpoint that can be loaded",
        .enabled(if: marks, whyNoMarks), arguments: [true, false])
    func changesAfterASave(_ resets: Bool) throws {
        let directory = try TemporaryDirectory(prefix: try Products.cache("load-test") + "/ram")
        let (file, ram) = (directory.file("state"), directory.file("ram"))
        let old = try Machine(file: ram)
        try run(old, 7)
        try old.cpr.save(to: file, mode: "test-reboot")
        if resets {
            try old.vm.requestReset()
            var rounds = 0
            old.vm.run(until: {
                rounds += 1
                return rounds > 1
            })
            #expect(old.vm.runState == .prelaunch && old.devices[0].resets == 2)
            // The save is void: another can be made.
            try old.cpr.save(to: directory.file("next"), mode: "test-reboot")
        } else {
            try old.vm.start()
        }
        let new = try Machine(file: ram)
        #expect(
            message { () throws(VMMError) in try new.cpr.load(from: file, mode: "test-reboot") }
                .contains("RAM block 'ram' is not as it was when"))
    }

    @Test("A checkpoint that holds all of memory is loaded as often as one likes")
    func snapshots() throws {
        let directory = try TemporaryDirectory()
        let file = directory.file("state")
        let old = try Machine()
        try run(old, 7)
        try old.cpr.save(to: file, mode: "test-reboot")
        for _ in 0..<2 {
            let new = try Machine()
            try new.cpr.load(from: file, mode: "test-reboot")
            #expect(new.word == 7)
        }
    }

    @Test("What the guest asked for is carried out before a save, and not lost by it")
    func guestsRequest() throws {
        let directory = try TemporaryDirectory()
        let file = directory.file("state")
        let machine = try Machine()
        try run(machine, 7)
        machine.vm.guestRequestedReset()
        try machine.cpr.save(to: file, mode: "test-reboot")
        #expect(machine.events.filter { $0 == "RESET" || $0 == "STOP" } == ["RESET", "STOP"])
        #expect(machine.devices[0].value == 0)
        let new = try Machine()
        try new.cpr.load(from: file, mode: "test-reboot")
        #expect(new.devices.map(\.value) == [0, 0] && new.vm.isRunning)

        let other = try Machine()
        other.vm.noShutdown = true
        try run(other, 9)
        other.vm.guestRequestedShutdown(status: 0)
        try other.cpr.save(to: file, mode: "test-reboot")
        #expect(other.events.contains("SHUTDOWN"))
        let last = try Machine()
        try last.cpr.load(from: file, mode: "test-reboot")
        #expect(last.vm.runState == .shutdown)
    }

    @Test("A machine that cannot go on is not started before a reset, saved, loaded or not")
    func brokenMachine() throws {
        let directory = try TemporaryDirectory()
        let file = directory.file("state"), refusal = "Resetting the Virtual Machine is required"
        let machine = try Machine()
        try run(machine, 7)
        machine.vm.stop(.internalError)
        try machine.cpr.save(to: file, mode: "test-reboot")
        #expect(machine.vm.runState == .saveVM)
        #expect(message { () throws(VMMError) in try machine.vm.start() } == refusal)

        let new = try Machine()
        try new.cpr.load(from: file, mode: "test-reboot")
        #expect(new.vm.runState == .internalError)
        #expect(message { () throws(VMMError) in try new.vm.start() } == refusal)
        new.vm.resetDevices()
        try new.vm.start()
        #expect(new.vm.isRunning)
    }

    @Test("A VMM that is to end saves, replaces and loads nothing", arguments: [true, false])
    func ending(_ byGuest: Bool) throws {
        let directory = try TemporaryDirectory()
        let file = directory.file("state")
        let machine = try Machine()
        try run(machine, 7)
        if byGuest { machine.vm.guestRequestedShutdown(status: 3) } else { machine.vm.requestQuit(status: 3) }
        #expect(
            message { () throws(VMMError) in try machine.cpr.save(to: file, mode: "test-reboot") }
                == "the VMM is ending")
        #expect(!FileManager.default.fileExists(atPath: file))
        #expect(machine.vm.run() == 3)

        let saved = try Machine()
        try run(saved, 7)
        try saved.cpr.save(to: file, mode: "test-restart")
        saved.vm.requestQuit()
        #expect(message { () throws(VMMError) in try saved.cpr.exec(["/bin/false"]) } == "the VMM is ending")
        let new = try Machine()
        new.vm.requestQuit()
        #expect(
            message { () throws(VMMError) in try new.cpr.load(from: file, mode: "test-reboot") } == "the VMM is ending")
    }

    @Test("After a reset a save is void, whether the reset has been carried out or not")
    func resetAfterSave() throws {
        let directory = try TemporaryDirectory()
        let machine = try Machine()
        try run(machine, 7)
        try machine.cpr.save(to: directory.file("state"), mode: "test-restart")
        try machine.vm.requestReset()
        #expect(
            message { () throws(VMMError) in try machine.cpr.exec(["/bin/false"]) } == "runstate is not save-vm")
        #expect(machine.vm.runState == .prelaunch)
    }

    @Test("A reset that was asked for before a load does not reset the guest that was loaded")
    func resetBeforeLoad() throws {
        let directory = try TemporaryDirectory()
        let file = directory.file("state")
        let old = try Machine()
        try run(old, 7)
        try old.cpr.save(to: file, mode: "test-reboot")
        let new = try Machine()
        try new.vm.requestReset()
        try new.cpr.load(from: file, mode: "test-reboot")
        new.vm.loop.later {}
        var rounds = 0
        new.vm.run(until: {
            rounds += 1
            return rounds > 1
        })
        #expect(new.devices.map(\.value) == [7, 8] && new.vm.isRunning)
    }

    // MARK: The right to write

    // F_ADD_SEALS and F_SEAL_FUTURE_WRITE.
    private let addSeals: Int32 = 1033
    private let futureWrite: Int32 = 0x10

    @Test("Memory that cannot be written to is refused before the guest is taken over")
    func writeSeal() throws {
        let directory = try TemporaryDirectory()
        let file = directory.file("state")
        let old = try Machine(seals: false)
        try run(old, 7)
        try old.cpr.save(to: file, mode: "test-restart")
        let state = old.stateForExec()
        #expect(fcntl(old.ram.fd, addSeals, futureWrite) == 0)
        #expect(throws: VMMError.self) { try Machine(inherited: state) }
        #expect(old.memory.volatility(of: old.ram)?.message.contains("sealed against writing") == true)
        #expect(old.word == 7)
        old.word = 8
    }

    @Test("A seal that comes once the successor has mapped memory takes nothing from it")
    func lateWriteSeal() throws {
        let directory = try TemporaryDirectory()
        let file = directory.file("state")
        let old = try Machine(seals: false)
        try run(old, 7)
        try old.cpr.save(to: file, mode: "test-restart")
        let new = try Machine(inherited: old.stateForExec())
        #expect(fcntl(old.ram.fd, addSeals, futureWrite) == 0)
        try new.cpr.load(from: file, mode: "test-restart")
        new.word = 9
        #expect(old.word == 9 && new.vm.isRunning)
    }

    @Test("A holder of sealed memory can neither shorten it nor seal it further")
    func completeSeals() throws {
        let fd = try Mapping.createMemfd(name: "test", length: 4096, sealSize: true)
        #expect(fcntl(fd.raw, addSeals, futureWrite) != 0 && errno == EPERM)
        #expect(ftruncate(fd.raw, 0) != 0 && errno == EPERM)
        #expect(ftruncate(fd.raw, 8192) != 0 && errno == EPERM)
    }

    // MARK: Lost memory

    @Test("Memory whose file was shortened is not saved as if its zeroes were the guest's")
    func lostMemory() throws {
        let directory = try TemporaryDirectory()
        let file = directory.file("state")
        let machine = try Machine(file: directory.file("ram"))
        machine.ram.file = nil  // Its contents go to the checkpoint.
        try run(machine, 7)
        try #require(truncate(directory.file("ram"), 4096) == 0)
        let text = message { () throws(VMMError) in try machine.cpr.save(to: file, mode: "test-reboot") }
        #expect(text.contains("the memory of RAM block 'ram' in '\(directory.file("ram"))' is lost"))
        #expect(!FileManager.default.fileExists(atPath: file))
        #expect(message { () throws(VMMError) in try machine.vm.start() }.contains("RAM block 'ram'"))
        // Nor is it from then on, in any mode.
        #expect(
            message { () throws(VMMError) in try machine.cpr.save(to: file, mode: "test-restart") }
                .contains("RAM block 'ram'"))
    }
}
