import BatonRuntime
import Glibc

/// Keeps chardevs open over an update.
///
/// For a new VMM each chardev saves its descriptors (`chardev-ID-listener`,
/// …) and hands over what is not in the kernel: bytes that its peer has not
/// taken, the focus of a multiplexer. The new VMM's chardev of that id takes
/// them instead of opening anything, and what has changed of them when the guest
/// changes hands.
public enum ChardevUpdate {
    static let prefix = "chardev-"

    /// Takes part in the updates of the VM.
    /// - Throws: with `-only-cpr-capable`, for a chardev that cannot be kept.
    public static func register(vm: VirtualMachine, cpr: CprController) throws(VMMError) {
        for chardev in vm.chardevs where !chardev.survivesUpdate && !chardev.reopensOnCpr {
            try cpr.addBlocker(
                VMMError("chardev \(chardev.id) -> \(chardev.filename) does not allow cpr. See reopen-on-cpr."),
                scope: .promising(.keepsConnections))
        }
        cpr.beforeExec { [unowned vm] in for chardev in vm.chardevs { chardev.prepareForExec() } }
        cpr.onPhase { [unowned vm, unowned cpr] phase throws(VMMError) in
            switch phase {
            case .survey, .exec:
                for chardev in vm.chardevs { try chardev.handOver(to: cpr) }
            case .saveFailed:
                for entry in cpr.fds.entries where entry.name.hasPrefix(prefix) {
                    cpr.fds.delete(entry.name, id: entry.id)
                }
                for chardev in vm.chardevs { chardev.execFailed() }
            case .commit:
                for chardev in vm.chardevs { chardev.committed() }
            default: break
            }
        }
    }

    /// Comes before whoever uses the chardev follows changes of its own.
    static func followChanges(of chardev: Chardev, _ cpr: any MachineHandover) {
        if let mux = chardev as? MuxChardev { followChanges(of: mux.base, cpr) }
        cpr.onChange(of: part(chardev.id), fds: "\(prefix)\(chardev.id)-") {
            [unowned chardev] changes throws(VMMError) in
            if chardev.startsAnew { changes.discard() } else { try chardev.takeOver(changes) }
        }
    }

    /// What a chardev hands over.
    static func state(of chardev: Chardev, _ fill: (inout StateWriter) -> Void) -> StateWriter {
        var writer = StateWriter(capacity: 128)
        writer.put("backend", chardev.backend)
        fill(&writer)
        return writer
    }

    static func part(_ id: String) -> String { "chardev/\(id)" }
    static func name(_ id: String, _ what: String) -> String { "\(prefix)\(id)-\(what)" }

    /// Once every chardev stands: closes what the new command line has no
    /// chardev for.
    public static func closeLeftovers(_ cpr: CprController) {
        for entry in cpr.fds.entries where entry.name.hasPrefix(prefix) {
            Report.warning("\(entry.name): the command line has no such chardev any more; it is closed")
            cpr.fds.delete(entry.name, id: entry.id)
            close(entry.fd)
        }
    }
}

extension MachineHandover {
    /// Saves a chardev's descriptor for the next process.
    func save(_ fd: Int32, of chardev: Chardev, as what: String) {
        fds.replace(ChardevUpdate.name(chardev.id, what), fd)
    }

    /// Undoes `save`.
    func forget(_ what: String, of chardev: Chardev) {
        fds.delete(ChardevUpdate.name(chardev.id, what))
    }

    /// Hands a chardev's state to the next process.
    func handOver(_ chardev: Chardev, _ fill: (inout StateWriter) -> Void) {
        handOver(ChardevUpdate.part(chardev.id), ChardevUpdate.state(of: chardev, fill))
    }
}

/// What a chardev finds of the process before.
struct ChardevHeritage {
    private let cpr: any MachineHandover
    private let id: String
    let state: StateReader

    /// - Returns: nil when the process before had no such chardev, or it is to
    ///   be opened anew.
    /// - Throws: an error when it was another kind of chardev.
    static func find(
        _ id: String, backend: String, reopen: Bool, vm: VirtualMachine
    ) throws(VMMError) -> ChardevHeritage? {
        guard let cpr = vm.handover, let state = try cpr.inheritedPart(ChardevUpdate.part(id)) else { return nil }
        let heritage = ChardevHeritage(cpr: cpr, id: id, state: state)
        if reopen {
            heritage.discard()
            return nil
        }
        let before = try state.string("backend")
        guard before == backend else {
            // As a chardev of another kind: nothing of what the process before has of it is taken over.
            if heritage.mayStartAnew {
                heritage.discard()
                return nil
            }
            throw VMMError(
                "chardev '\(id)' is of kind '\(before)' in the CPR state, but '\(backend)' on the command line",
                hint: "Give the new VMM the chardevs of the old one, or reopen-on-cpr=on.")
        }
        return heritage
    }

    /// Whether a chardev that is at another place now is opened there, instead of refused.
    var mayStartAnew: Bool { cpr.hasOwnCommandLine }

    /// Closes what was handed over.
    func discard() {
        for what in ["listener", "connection", "master", "file", "input", "output"] {
            if let fd = claim(what) { close(fd) }
        }
    }

    /// Whether it listened at this address.
    func isServer(at address: SocketAddress) -> Bool {
        guard let fd = cpr.fds.find(ChardevUpdate.name(id, "listener")) else { return false }
        return DescriptorKind.isSocket(fd, listening: true) && DescriptorKind.isBound(fd, to: address)
    }

    /// Takes over a descriptor, which is the caller's from now on.
    func claim(_ what: String) -> Int32? {
        let name = ChardevUpdate.name(id, what)
        guard let fd = cpr.fds.find(name) else { return nil }
        cpr.fds.delete(name)
        return fd
    }

    func bytes(_ name: String) throws(VMMError) -> [UInt8] { try ChardevHeritage.bytes(name, of: state) }

    static func bytes(_ name: String, of state: StateReader) throws(VMMError) -> [UInt8] {
        state.has(name) ? try state.bytes(name) : []
    }

    func mismatch(_ what: String) -> VMMError {
        VMMError(
            "chardev '\(id)': the inherited descriptor is not \(what)",
            hint: "Give the new VMM the chardevs of the old one, or reopen-on-cpr=on.")
    }
}
