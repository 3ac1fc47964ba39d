import BatonBase
import BatonMachine
import CBaton
import Glibc

/// Writes and reads checkpoints: everything of the VM except RAM that stays
/// where it is. `CheckedCheckpoint` is the way of one into a VM.
///
/// The sections `global`, `clock` and `ram` are the core's; every device has
/// one under its state name; a mode may add its own.
enum Checkpoint {
    static let sizeLimit = 1 << 30

    /// Collects the state of a VM that is stopped, or for a trial, which stands for that.
    /// - Parameters:
    ///   - runState: what it was in before it was stopped for this.
    ///   - plugged: what has come since the start, which a VM that loads this must be started with.
    /// - Throws: what cannot be told of memory that stays where it is.
    static func collect(
        _ vm: VirtualMachine, memory: GuestMemory, runState: RunState, mode: String, plugged: [String]
    ) throws(VMMError) -> SectionContainer {
        var container = SectionContainer(kind: .checkpoint)
        var global = StateWriter()
        global.put("version", BatonVersion.text, optional: true)
        global.put("run-state", runState.rawValue)
        global.put("machine", vm.machineType)
        global.put("name", vm.name ?? "", optional: true)
        global.put("mode", mode, optional: true)
        if let identity = memory.identity { global.put("memory-id", identity, optional: true) }
        if !plugged.isEmpty { global.put("plugged", plugged, optional: true) }
        container.add("global", version: 1, global)

        var clock = StateWriter()
        clock.put("boot-id", HostBoot.id)
        clock.put("monotonic-offset-ns", UInt64(bitPattern: vm.clock.monotonicOffset))
        clock.put("now-ns", UInt64(bitPattern: vm.clock.now))
        clock.put("realtime-ns", UInt64(bitPattern: vm.clock.wallClockOfNow))
        container.add("clock", version: 1, clock)

        var ram = StateWriter()
        ram.put("count", UInt64(memory.blocks.count))
        for (index, block) in memory.blocks.enumerated() {
            ram.put("\(index).name", block.name)
            ram.put("\(index).used-length", UInt64(block.usedLength))
            if let file = block.file {
                // Without it nobody could tell where the contents are.
                guard let identity = FileIdentity(block.fd) else {
                    throw .system("cannot examine '\(file)', the memory of RAM block '\(block.name)'")
                }
                ram.put("\(index).file", file)
                ram.put("\(index).inode", identity.inode)
            }
        }
        container.add("ram", version: 1, ram)

        vm.whileCPUsStand {
            for device in vm.devices where device.isAsAtPowerOn != true {
                var writer = StateWriter()
                device.save(to: &writer)
                container.add(device.stateName, version: device.stateVersion, writer)
            }
        }
        return container
    }

    /// Writes a container to a file, which appears whole or not at all (`WholeFile`).
    /// - Parameter contents: blocks whose contents follow the sections, which
    ///   describe them.
    static func write(
        _ container: SectionContainer, contents: [RAMBlock], to path: String, durable: Bool,
        progress: RAMContents.Progress
    ) throws(VMMError) {
        let file = try WholeFile(path)
        try write(container, contents: contents, to: file.fd, name: "'\(path)'", progress: progress)
        try file.commit(durable: durable)
    }

    /// Writes a container to a memfd, which `fd` is if it could be made.
    /// Borrowed.
    static func write(_ container: SectionContainer, contents: [RAMBlock], toMemfd fd: Int32) throws(VMMError) {
        guard fd >= 0 else { throw .system("cannot write the checkpoint") }
        try write(container, contents: contents, to: fd, name: "the checkpoint")
    }

    /// - Parameter name: the file, as messages have it.
    private static func write(
        _ container: SectionContainer, contents: [RAMBlock], to fd: Int32, name: String,
        progress: RAMContents.Progress = { _, _ in }
    ) throws(VMMError) {
        let bytes = container.encoded()
        try FD.writeAll(fd, bytes, to: name)
        try RAMContents.write(contents, to: fd, after: bytes.count, name: name, progress: progress)
    }

    /// Reads the sections from a borrowed descriptor.
    static func read(_ fd: Int32, name: String) throws(VMMError) -> SectionContainer {
        var status = stat()
        guard fstat(fd, &status) == 0, status.st_mode & S_IFMT == S_IFREG else {
            throw VMMError("\(name) is not a vmstate file")
        }
        let fileLength = Int(status.st_size)
        let header = try bytes(fd, count: min(fileLength, SectionContainer.headerSize), name)
        let extent = SectionContainer.extent(header: header, fileLength: fileLength)
        guard extent <= sizeLimit else {
            throw VMMError("\(name) is too large (\(extent) bytes, at most \(sizeLimit) are accepted)")
        }
        let container = try SectionContainer(kind: .checkpoint, parsing: try bytes(fd, count: extent, name), name: name)
        if container.section(RAMContents.sectionName) == nil && fileLength > extent {
            throw VMMError("\(name) has bytes after its last section")
        }
        return container
    }

    private static func bytes(_ fd: Int32, count: Int, _ name: String) throws(VMMError) -> [UInt8] {
        var failure: VMMError?
        let result = [UInt8](unsafeUninitializedCapacity: count) { buffer, filled in
            while filled < count {
                let n = retryingInterrupts {
                    pread(fd, buffer.baseAddress.map { $0 + filled }, count - filled, off_t(filled))
                }
                guard n > 0 else {
                    failure = n == 0 ? VMMError("\(name) is truncated") : .system("Could not read '\(name)'")
                    return
                }
                filled += n
            }
        }
        if let failure { throw failure }
        return result
    }

    /// What tells a file from another that has taken its name.
    struct FileIdentity {
        let inode: UInt64
        init?(_ fd: Int32) {
            var status = stat()
            guard fd >= 0, fstat(fd, &status) == 0 else { return nil }
            inode = UInt64(status.st_ino)
        }
    }
}
