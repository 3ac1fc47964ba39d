import BatonBase
import BatonMachine
import CBaton
import Glibc

/// A checkpoint that has been checked against a VM, and can be applied to it.
///
/// To make one changes nothing: every section, field and value has been read,
/// and each device has said that it can take its own. After that only the copy
/// of memory contents can fail, as it reads a file that others may change.
struct CheckedCheckpoint {
    /// The run state that the VM was saved in.
    let runState: RunState
    /// The state of memory that the checkpoint goes with; nil in one of before
    /// there was any.
    let memoryIdentity: String?
    private let clock: Clock
    private let contents: RAMContents.Checked
    private let devices: [() -> Void]
    private let container: SectionContainer
    private let vm: VirtualMachine
    private let name: String
    /// What had been plugged into the VM that was saved, and this one lacks.
    private let lacking: [String]

    private struct Clock {
        var boot: String
        var offset: Int64
        var now: Int64
        var realtime: Int64
    }

    /// - Parameters:
    ///   - fd: the checkpoint's file, borrowed for as long as this is used.
    ///   - name: the file, as messages have it.
    init(_ container: SectionContainer, from fd: Int32, for cpr: CprController, mode: any CprMode, name: String)
        throws(VMMError)
    {
        self.container = container
        self.name = name
        vm = cpr.vm
        let sections = Sections(container: container, name: name)
        let plugged: [String]
        (runState, memoryIdentity, plugged) = try CheckedCheckpoint.global(sections, cpr: cpr, mode: mode)
        lacking = cpr.plugged?.lacking(of: plugged) ?? []
        clock = try CheckedCheckpoint.clock(sections)
        do throws(VMMError) {
            contents = try RAMContents.check(container, from: fd, memory: cpr.memory, name: name)
            try CheckedCheckpoint.checkMemory(sections, cpr.memory, contents, identity: memoryIdentity)
            devices = try CheckedCheckpoint.devices(sections, vm)
        } catch {
            throw CheckedCheckpoint.explained(error, lacking)
        }
    }

    /// - Returns: what gives each device its state.
    private static func devices(_ sections: Sections, _ vm: VirtualMachine) throws(VMMError) -> [() -> Void] {
        var devices: [() -> Void] = []
        devices.reserveCapacity(vm.devices.count)
        for device in vm.devices {
            // They are in this order.
            let guess = CheckedCheckpoint.coreSections.count + devices.count
            // One that has come to the machine since is as it was made.
            if device.isAsAtPowerOn != nil, sections.container.section(device.stateName, at: guess) == nil { continue }
            let reader = try sections.reader(device.stateName, upTo: device.stateVersion, at: guess)
            do throws(VMMError) {
                devices.append(try device.loader(of: reader))
                try reader.finish()
            } catch {
                throw error.prefixed(
                    "error while loading state for instance '\(device.stateName)' of \(sections.name)")
            }
        }
        return devices
    }

    /// - Parameter lacking: what had been plugged, and is not there.
    private static func explained(_ error: VMMError, _ lacking: [String]) -> VMMError {
        guard !lacking.isEmpty else { return error }
        return VMMError(
            "\(error.message); what had been plugged into the VM that was saved is lacking here: "
                + lacking.prefix(32).map(forShell).joined(separator: " "), hint: error.hint)
    }

    /// An option and its argument, which a shell would not leave as it is when it is JSON.
    private static func forShell(_ option: String) -> String {
        guard let space = option.firstIndex(of: " "), option.contains(where: { "{\"'$\\".contains($0) }) else {
            return option
        }
        let pieces = option[option.index(after: space)...].split(separator: "'", omittingEmptySubsequences: false)
        return "\(option[...space])'\(pieces.joined(separator: "'\\''"))'"
    }

    // MARK: Checks

    /// They come first, and have been found.
    private static let coreSections = ["global", "clock", "ram"]

    private struct Sections {
        let container: SectionContainer
        let name: String

        func reader(_ sectionName: String, upTo version: UInt32, at guess: Int = 0) throws(VMMError) -> StateReader {
            guard let section = container.section(sectionName, at: guess) else {
                throw VMMError(
                    "\(name) has no section '\(sectionName)'",
                    hint: "Load it into a VM with the same machine and devices as the one that was saved.")
            }
            guard (1...version).contains(section.version) else {
                throw VMMError(
                    "section '\(sectionName)' of \(name) has version \(section.version), "
                        + "this VMM knows up to \(version)")
            }
            return try container.reader(section)
        }
    }

    private static func global(_ sections: Sections, cpr: CprController, mode: any CprMode)
        throws(VMMError) -> (RunState, String?, plugged: [String])
    {
        let name = sections.name
        let global = try sections.reader("global", upTo: 1)
        let machine = try global.string("machine")
        guard machine == cpr.vm.machineType else {
            throw VMMError("\(name) is of machine type '\(machine)', this VM is '\(cpr.vm.machineType)'")
        }
        let stateName = try global.string("run-state")
        guard let runState = RunState(rawValue: stateName) else {
            throw VMMError("\(name) has the unknown run state '\(stateName)'")
        }
        _ = global.has("name") ? try global.string("name") : nil
        // What one mode leaves in place another would look for in the file.
        if global.has("mode"), try global.string("mode") != mode.name {
            throw VMMError("\(name) was saved in mode '\(try global.string("mode"))', not '\(mode.name)'")
        }
        let identity = global.has("memory-id") ? try global.string("memory-id") : nil
        let plugged = global.has("plugged") ? try global.strings("plugged") : []
        try global.finish()
        if let inherited = cpr.inherited {
            guard inherited.memoryIdentity == identity else {
                throw VMMError(
                    "\(name) is of another save than the guest memory that this process has taken over",
                    hint: inherited.kept == nil
                        ? "Load the checkpoint of the last cpr-save before the cpr-exec."
                        : "Load the checkpoint of the save that has kept this guest. If the file is not there, "
                            + "the checkpoint is loaded that was kept with the guest.")
            }
        } else if mode.promises.handsOver, !mode.promises.contains(.survivesHostReboot) {
            throw VMMError(
                "\(name) was saved in mode '\(mode.name)', and only the process that takes its guest over can load it",
                hint: "Guest memory stays in place in this mode, and is not in the checkpoint.")
        }
        return (runState, identity, plugged)
    }

    private static func clock(_ sections: Sections) throws(VMMError) -> Clock {
        let reader = try sections.reader("clock", upTo: 1)
        let clock = Clock(
            boot: try reader.string("boot-id"),
            offset: Int64(bitPattern: try reader.unsigned("monotonic-offset-ns")),
            now: Int64(bitPattern: try reader.unsigned("now-ns", in: 0...UInt64(Int64.max))),
            realtime: Int64(try reader.unsigned("realtime-ns", in: 0...UInt64(Int64.max))))
        try reader.finish()
        return clock
    }

    /// Every block of the VM must be in the checkpoint, once, with its length;
    /// and its contents must be those of the save, wherever they are.
    private static func checkMemory(
        _ sections: Sections, _ memory: GuestMemory, _ contents: RAMContents.Checked, identity: String?
    ) throws(VMMError) {
        let name = sections.name
        let ram = try sections.reader("ram", upTo: 1)
        let blocks = Dictionary(memory.blocks.map { ($0.name, $0) }) { first, _ in first }
        var seen: Set<String> = []
        for index in 0..<(try ram.unsigned("count", in: 0...1_000_000)) {
            let blockName = try ram.string("\(index).name")
            let length = try ram.unsigned("\(index).used-length")
            guard let block = blocks[blockName] else {
                throw VMMError("\(name) has the RAM block '\(blockName)', which this VM lacks")
            }
            guard seen.insert(blockName).inserted else {
                throw VMMError("\(name) has the RAM block '\(blockName)' twice")
            }
            guard UInt64(block.usedLength) == length else {
                throw VMMError("Size mismatch: \(blockName): \(Hex(length)) != \(Hex(block.usedLength))")
            }
            if ram.has("\(index).file") {
                let file = try ram.string("\(index).file")
                let inode = try ram.unsigned("\(index).inode")
                // The contents are in that file, and in no other of its name.
                guard contents.contains(block) || Checkpoint.FileIdentity(block.fd)?.inode == inode else {
                    throw VMMError(
                        "RAM block '\(blockName)' is not in the file that \(name) was saved with ('\(file)', "
                            + "inode \(inode))")
                }
                try checkMark(of: block, identity, contents, memory, name)
            } else if !contents.contains(block), !memory.isInherited(block) {
                throw VMMError(
                    "\(name) does not have the contents of RAM block '\(blockName)', "
                        + "and this process has not taken them over")
            }
        }
        try ram.finish()
        if let block = memory.blocks.first(where: { !seen.contains($0.name) }) {
            throw VMMError(
                "\(name) does not have the RAM block '\(block.name)' of this VM",
                hint: "Load it into a VM with the same memory and devices as the one that was saved.")
        }
    }

    /// Memory that stayed in a file must be as it was at the save.
    private static func checkMark(
        of block: RAMBlock, _ identity: String?, _ contents: RAMContents.Checked, _ memory: GuestMemory, _ name: String
    ) throws(VMMError) {
        guard !contents.contains(block), !memory.isInherited(block) else { return }
        guard let identity else {
            return Report.warning(
                "\(name) was saved by a version of Baton that did not mark guest memory: "
                    + "it cannot be told whether the guest has run since")
        }
        guard GuestMemory.mark(block.fd) == identity else {
            throw VMMError(
                "RAM block '\(block.name)' is not as it was when \(name) was saved: "
                    + "the guest has run since, or its memory was copied or restored",
                hint: "A checkpoint goes with the memory of its own save, until the guest runs again.")
        }
    }

    /// Checks, once the mode has taken what is its own, that nothing is left over.
    /// - Parameter ownSections: names of sections that the mode has taken.
    func checkComplete(ownSections: [String]) throws(VMMError) {
        let own = Set(ownSections + [RAMContents.sectionName]).subtracting(CheckedCheckpoint.coreSections)
            .count { container.section($0) != nil }
        // Every section has a name of its own, and those of all devices have been found.
        guard container.sections.count != CheckedCheckpoint.coreSections.count + devices.count + own else { return }
        let known = Set(
            CheckedCheckpoint.coreSections + [RAMContents.sectionName] + ownSections + vm.devices.map(\.stateName))
        for section in container.sections where !section.optional && !known.contains(section.name) {
            let error = VMMError(
                "Unknown savevm section or instance '\(section.name)'. "
                    + "Make sure that your current VM setup matches your saved VM setup, "
                    + "including any hotplugged devices")
            throw CheckedCheckpoint.explained(error, lacking)
        }
    }

    // MARK: Application

    /// Copies the contents of memory that the file has.
    /// - Throws: why the file cannot be read any more.
    func copyContents() throws(VMMError) {
        do throws(VMMError) {
            try contents.copy()
        } catch {
            throw VMMError(
                error.message,
                hint: "The file was changed while it was loaded. Memory of this VM, which has not run, holds a part "
                    + "of it; another cpr-load, or the reset before the first start, replaces that.")
        }
    }

    /// Gives the clock and every device its state.
    func apply() {
        if !clock.boot.isEmpty && clock.boot == HostBoot.id && !vm.clock.stopsWithVM {
            vm.clock.restore(monotonicOffset: clock.offset, now: clock.now)
        } else {
            // Another boot of the host: the wall clock says how long it took.
            let passed = max(0, cbaton_realtime_ns().subtractingReportingOverflow(clock.realtime).partialValue)
            vm.clock.restore(now: clock.now, wallClock: clock.realtime, passed: passed)
        }
        for load in devices { load() }
    }
}
