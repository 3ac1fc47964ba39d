import BatonRuntime
import Glibc

/// The module `mode-broken`: the restart mode with one thing wrong, which the
/// file says that `BATON_BROKEN_MODE` names, and a preserver with another. Of
/// the test suite's own, to show that the harness finds what it is there to
/// find. With the file empty nothing is wrong.
@_cdecl("baton_module_query")
public func batonModuleQuery() -> UnsafeRawPointer {
    ModuleDescriptor.make(kind: "mode", name: "broken", version: "1.0") { registrar throws(VMMError) in
        try registrar.add(BrokenMode())
        try registrar.add(try BrokenPreserver())
    }
}

/// Which way the module is broken now.
private var way: String {
    guard let file = getenv("BATON_BROKEN_MODE"), let fd = try? FD.open(String(cString: file), O_RDONLY),
        let bytes = try? FD.readAll(fd.raw, limit: 64, from: "the broken mode's file")
    else { return "" }
    return String(decoding: bytes, as: UTF8.self)
}

/// Keeps one memfd, or mishandles it or another's descriptors.
final class BrokenPreserver: FdPreserver {
    let name = "broken"
    private var fd: Int32

    init() throws(VMMError) { fd = try Mapping.createMemfd(name: "broken", length: 4096).release() }

    func notify(_ phase: CprPhase, cpr: CprController) throws(VMMError) {
        switch phase {
        case .save:
            try cpr.fds.resave("broken", fd)
            if way == "preserver-leaks" { _ = open("/dev/zero", O_RDONLY) }
        case .load:
            guard let kept = cpr.fds.find("broken") else { return }
            if way == "preserver-loses" {
                cpr.fds.delete("broken")
                close(kept)
            } else {
                close(fd)
                fd = kept
            }
        case .commit:
            guard way == "preserver-closes" else { return }
            for number in Int32(3)..<256 where isTerminal(number) { close(number) }
        default: break
        }
    }

    private func isTerminal(_ number: Int32) -> Bool {
        guard let path = realpath("/proc/self/fd/\(number)", nil) else { return false }
        defer { free(path) }
        return String(cString: path).hasSuffix("ptmx")
    }
}

final class BrokenMode: CprMode {
    let name = "broken"
    let summary = "the restart mode with one thing wrong, for the tests of baton-harness"
    let allocatorHook: (any AllocatorHook)? = Allocator()
    var promises: CprModePromises {
        way == "promises-reboot"
            ? [.samePID, .keepsConnections, .executes, .survivesHostReboot]
            : [.samePID, .keepsConnections, .executes]
    }

    private final class Allocator: AllocatorHook {
        let hookName = "broken"
        func allocate(_ request: RAMRequest, memory: GuestMemory) throws(VMMError) -> RAMBlock? {
            try memory.preservedBlock(request, shared: true, origin: hookName) { () throws(VMMError) in
                try Mapping.createMemfd(name: request.name, length: request.maxLength).release()
            }
        }
    }

    func blockers(cpr: CprController) -> [VMMError] {
        guard way != "no-blockers" else { return [] }
        return cpr.memory.blocks.filter { !$0.isPreservable }.map {
            VMMError("Memory region \($0.name) is volatile.")
        }
    }

    func save(to container: inout SectionContainer, cpr: CprController) throws(VMMError) {
        switch way {
        case "register": try change("cpu0", "x", &container) { $0[18] ^= 1 << 40 }
        case "float-register": try change("cpu0", "f", &container) { $0[7] ^= 1 }
        case "device": try change("serial0", "scr", &container) { $0[0] ^= 1 }
        case "clock": try change("clock", "monotonic-offset-ns", &container) { $0[0] &-= 240_000_000_000 }
        case "ram":
            guard let block = cpr.memory.blocks.first(where: { $0.name == "ram" }) else { return }
            let byte = block.host.advanced(by: 0x60_0123).assumingMemoryBound(to: UInt8.self)
            byte.pointee ^= 0x10
        case "no-stop": try cpr.vm.start()
        case "resumes": try change("global", "run-state", &container, to: "running")
        case "stays-stopped": try change("global", "run-state", &container, to: "paused")
        case "blocks": while true { pause() }
        default: try flipBit(&container)
        }
    }

    /// `flip SECTION FIELD INDEX BIT`, of a number or a byte of a field.
    private func flipBit(_ container: inout SectionContainer) throws(VMMError) {
        let words = way.split(separator: " ").map(String.init)
        guard words.count == 5, words[0] == "flip", let index = Int(words[3]), let bit = Int(words[4]) else { return }
        try change(words[1], words[2], &container) { $0[index] ^= 1 << UInt64(bit) }
    }

    func exec(_ argv: [String], cpr: CprController) throws(VMMError) {
        var state = cpr.stateForExec(mode: self)
        var fds = state.ram.map(\.fd) + state.fds.map(\.fd)
        if let checkpoint = state.checkpointFD { fds.append(checkpoint) }
        switch way {
        case "returns": return
        case "forgets-listener": state.fds.removeAll { $0.name.hasSuffix("-listener") }
        case "forgets-connection": state.fds.removeAll { $0.name.hasSuffix("-connection") }
        case "forgets-file": state.fds.removeAll { $0.name == "chardev-log-file" }
        case "forgets-pty": state.fds.removeAll { $0.name == "chardev-pty-master" }
        case "leaks-fd":
            let leak = open("/dev/zero", O_RDONLY)
            if leak > 2 { fds.append(leak) }
        case "other-pid": return try spawn(argv, state, fds)
        default: break
        }
        try Handover.exec(argv, state: state, fds: fds)
    }

    /// Starts the successor as another process, and ends.
    private func spawn(_ argv: [String], _ state: CprState, _ fds: [Int32]) throws(VMMError) {
        let memfd = try state.writeMemfd()
        for fd in fds + [memfd.raw] { try FD.setCloseOnExec(fd, false) }
        setenv(CprState.environmentVariable, String(memfd.raw), 1)
        var arguments: [UnsafeMutablePointer<CChar>?] = argv.map { strdup($0) } + [nil]
        var pid: pid_t = 0
        guard posix_spawnp(&pid, argv[0], nil, nil, &arguments, environ) == 0 else { throw VMMError("cannot start") }
        _exit(0)
    }

    // MARK: Changing what was saved

    private func change(
        _ section: String, _ field: String, _ container: inout SectionContainer, to text: String? = nil,
        _ edit: (inout [UInt64]) -> Void = { _ in }
    ) throws(VMMError) {
        var changed = SectionContainer(kind: container.kind)
        for old in container.sections {
            guard old.name == section else {
                changed.add(old)
                continue
            }
            let reader = try container.reader(old)
            var writer = StateWriter()
            // Optional, and it would not be here: nobody reads it.
            for (name, type, payload) in reader.dump where name != "version" {
                switch type {
                case .unsigned:
                    var value = [try reader.unsigned(name)]
                    if name == field { edit(&value) }
                    writer.put(name, value[0])
                case .unsignedArray:
                    var values = try reader.array(name)
                    if name == field { edit(&values) }
                    writer.put(name, values)
                case .string: writer.put(name, name == field ? text ?? "" : try reader.string(name))
                case .bytes:
                    var values = payload.map { UInt64($0) }
                    if name == field { edit(&values) }
                    writer.put(name, bytes: values.map { UInt8(truncatingIfNeeded: $0) })
                case .stringArray: writer.put(name, try reader.strings(name))
                }
            }
            changed.add(old.name, version: old.version, optional: old.optional, writer)
        }
        container = changed
    }
}
