import BatonBase
import BatonMachine
import Glibc

/// What of a net back end crosses an update: descriptors, named
/// `netdev/ID/WHAT` with an index as the id, and a state, the part `netdev/ID`.
///
/// Back ends save and hand over in `.survey` and `.exec`, and find it when
/// they are made anew. Until the commit the guest may still go back: nothing
/// may be read from a descriptor, nor written to it.
public struct NetHeritage {
    private static let prefix = "netdev/"
    /// To be finished by the back end.
    public let state: StateReader
    private let handover: any MachineHandover
    private let id: String

    fileprivate static func part(_ id: String) -> String { prefix + id }
    fileprivate static func name(_ id: String, _ what: String) -> String { "\(prefix)\(id)/\(what)" }

    /// What has become of a back end's descriptor.
    public static func descriptor(
        _ what: String, index: Int = 0, of id: String, in changes: PartChanges
    ) -> PartChanges.Descriptor {
        changes.descriptor(name(id, what), id: index)
    }

    /// - Returns: nil when the process before had no such back end.
    /// - Throws: an error when it was of another kind.
    public static func find(_ id: String, backend: String, vm: VirtualMachine) throws(VMMError) -> NetHeritage? {
        guard let handover = vm.handover, let state = try handover.inheritedPart(part(id)) else { return nil }
        let before = try state.string("backend")
        let heritage = NetHeritage(state: state, handover: handover, id: id)
        guard before == backend else {
            throw heritage.mismatch("is of kind '\(before)' in the CPR state, but '\(backend)' on the command line")
        }
        return heritage
    }

    /// Takes over a descriptor, which is the caller's from now on.
    public func claim(_ what: String, index: Int = 0) -> Int32? {
        let name = NetHeritage.name(id, what)
        guard let fd = handover.fds.find(name, id: index) else { return nil }
        handover.fds.delete(name, id: index)
        return fd
    }

    /// An error for a command line that does not fit what was handed over.
    public func mismatch(_ what: String) -> VMMError {
        VMMError("netdev '\(id)' \(what)", hint: "Give the new VMM the network back ends of the old one.")
    }

    /// Once every back end stands: closes what the new command line has no
    /// back end for.
    public static func closeLeftovers(_ handover: any MachineHandover) {
        for entry in handover.fds.entries where entry.name.hasPrefix(prefix) {
            Report.warning("\(entry.name): the command line has no such network back end any more; it is closed")
            handover.fds.delete(entry.name, id: entry.id)
            close(entry.fd)
        }
    }
}

extension MachineHandover {
    /// Saves a back end's descriptor, which stays its own, for the next process.
    /// - Parameter serial: of one that the back end has had since (`PreservedFDs.newSerial`).
    public func save(_ fd: Int32, of backend: NetBackend, as what: String, index: Int = 0, serial: UInt64? = nil) {
        fds.replace(NetHeritage.name(backend.id, what), id: index, fd, serial: serial)
    }

    /// Hands a back end's state to the next process.
    public func handOver(_ backend: NetBackend, _ fill: (inout StateWriter) -> Void) {
        var writer = StateWriter()
        writer.put("backend", backend.backend)
        fill(&writer)
        handOver(NetHeritage.part(backend.id), writer)
    }

    /// Has `take` called with what has changed of a back end since this process
    /// was executed, see `onChange`. What it handed over is read from after `backend`.
    public func onChange(of backend: NetBackend, _ take: @escaping (PartChanges) throws(VMMError) -> Void) {
        onChange(of: NetHeritage.part(backend.id), fds: NetHeritage.name(backend.id, "")) {
            changes throws(VMMError) in
            _ = try changes.state?.string("backend")
            try take(changes)
        }
    }

    /// Undoes every `save` of a back end: the update has failed.
    public func forgetDescriptors(of backend: NetBackend) {
        let prefix = NetHeritage.name(backend.id, "")
        for entry in fds.entries where entry.name.hasPrefix(prefix) { fds.delete(entry.name, id: entry.id) }
    }
}
