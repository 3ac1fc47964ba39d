import BatonBase
import BatonMachine

/// What a mode promises; the test harness checks just that.
public struct CprModePromises: OptionSet {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    /// A new VMM that the mode executes has the old one's PID.
    public static let samePID = CprModePromises(rawValue: 1)
    /// The checkpoint can be loaded after the host has been rebooted.
    public static let survivesHostReboot = CprModePromises(rawValue: 2)
    /// Connections of clients and devices stay open.
    public static let keepsConnections = CprModePromises(rawValue: 4)
    /// The mode brings the new VMM to life itself: `exec` is there, and with it
    /// `cpr-exec` and `cpr-update` with a command.
    public static let executes = CprModePromises(rawValue: 8)
    /// The new VMM is a process that somebody else has started: `connect` and
    /// `receive` are there, and with them `cpr-update` with a channel.
    public static let connects = CprModePromises(rawValue: 16)
    /// Guest memory and the checkpoint stay with whoever the mode gives them to while no
    /// VMM runs, also while the host replaces its kernel: `prepare`, `keep`, `find` and
    /// `finish` are there. A reset of the host loses them.
    public static let survivesHostUpdate = CprModePromises(rawValue: 32)

    /// Whether the guest goes from one living VMM to another, which takes its RAM
    /// and descriptors over as they are.
    public var handsOver: Bool { contains(.executes) || contains(.connects) }
    /// Whether the guest's state is loaded by a process that was started anew, when the
    /// one that saved it is gone.
    public var outlivesProcess: Bool { contains(.survivesHostReboot) || contains(.survivesHostUpdate) }
}

/// A way of replacing the VMM: what `-cpr-enable NAME` enables and `cpr-save`
/// names. Implemented by modules named `mode-NAME`.
///
/// A mode owns how the new VMM comes to life and how the old one reaches it; what
/// is said between the two is the core's (`Handover`). While one of its methods runs,
/// nothing else does; not all of them come on the main thread, see `FdPreserver`.
/// `name` is what the command line says.
public protocol CprMode: ModulePart {
    /// One line for `-cpr-enable help`.
    var summary: String { get }
    var promises: CprModePromises { get }
    /// The hook that is put into the allocator chain when the mode is enabled.
    var allocatorHook: (any AllocatorHook)? { get }
    /// Reasons why the VM could not be saved in this mode now. Called while
    /// the guest runs; the guest is not stopped unless the list is empty.
    func blockers(cpr: CprController) -> [VMMError]
    /// Blocks whose contents the checkpoint must hold, because they are not
    /// there any more, or not the same, when it is loaded.
    func volatileBlocks(cpr: CprController) -> [RAMBlock]
    /// Adds what the mode itself keeps to a checkpoint. The guest is stopped.
    func save(to container: inout SectionContainer, cpr: CprController) throws(VMMError)
    /// Takes back what `save` added, before any device loads.
    /// - Returns: the names of the sections that were the mode's.
    func load(from container: SectionContainer, cpr: CprController) throws(VMMError) -> [String]
    /// Says how `argv` is to be started, by `Handover.exec`: it is executed in this
    /// process when this method has returned, while the guest goes on in a child.
    /// For modes that promise `executes`.
    /// - Throws: why nothing is to be executed.
    func exec(_ argv: [String], cpr: CprController) throws(VMMError)
    /// In the old VMM: reaches the new one, and says so by `Handover.connect`. The guest
    /// waits meanwhile, so this must not: the new VMM is there already, or it is an
    /// error. For modes that promise `connects`.
    /// - Parameters:
    ///   - channel: from `cpr-update`; what it means is the mode's.
    ///   - peer: the user of the new VMM that the client has named; nil when none.
    func connect(_ channel: String, peer: UInt32?, cpr: CprController) throws(VMMError)
    /// In the new VMM: waits until the old one has reached it, for as long as that
    /// takes. Nothing of the machine is there yet. For modes that promise `connects`.
    /// - Parameter channel: from `-incoming`.
    /// - Returns: a connected SOCK_SEQPACKET unix socket, with FD_CLOEXEC; the
    ///   caller's from then on.
    func receive(_ channel: String, cpr: CprController) throws(VMMError) -> Int32

    // For modes that promise `survivesHostUpdate`, in this order. `letGo` may follow each of
    // the first two, `find` may come again and again, in one process after the other.

    /// The guest is about to be stopped for a save: does what takes long, such as to keep
    /// `cpr.memoryToKeep`, by `VirtualMachine.run(beside:)`. The guest runs, and goes on to change its memory.
    /// While the main thread is held up here, devices and clients wait.
    func prepare(cpr: CprController) throws(VMMError)
    /// The guest stands still: keeps its state beside its memory. Nothing of it may be
    /// found by anybody before this has succeeded.
    /// - Parameter guest: its descriptors are borrowed.
    func keep(_ guest: KeptGuest, cpr: CprController) throws(VMMError)
    /// Nothing came of the save, or the guest is about to go on in this process: gives up
    /// what `prepare` and `keep` have made. From now on nobody may find it.
    func letGo(cpr: CprController)
    /// In a process that was started anew, before its machine is there: looks for this VM's
    /// guest. `cpr.vm` has its name and uuid. The guest must stay where it is, for another
    /// process to find it in case this one fails, until `finish`.
    /// - Returns: nil when there is none; the descriptors are the caller's from then on.
    /// - Throws: why a guest that there is cannot be had.
    func find(cpr: CprController) throws(VMMError) -> KeptGuest?
    /// The last step before the guest is this process': nobody may find it any more.
    /// - Throws: why that cannot be; it can be found as before.
    func finish(cpr: CprController) throws(VMMError)
}

extension CprMode {
    public var allocatorHook: (any AllocatorHook)? { nil }
    public func blockers(cpr: CprController) -> [VMMError] { [] }
    public func volatileBlocks(cpr: CprController) -> [RAMBlock] { [] }
    public func save(to container: inout SectionContainer, cpr: CprController) throws(VMMError) {}
    public func load(from container: SectionContainer, cpr: CprController) throws(VMMError) -> [String] { [] }
    public func exec(_ argv: [String], cpr: CprController) throws(VMMError) {
        throw VMMError("cpr-exec requires cpr-save in a mode that executes the new VMM, which '\(name)' does not")
    }
    public func connect(_ channel: String, peer: UInt32?, cpr: CprController) throws(VMMError) {
        throw VMMError("the mode '\(name)' hands no guest over to a process that runs already")
    }
    public func receive(_ channel: String, cpr: CprController) throws(VMMError) -> Int32 {
        throw VMMError("the mode '\(name)' takes no guest over from another process")
    }
    public func prepare(cpr: CprController) throws(VMMError) {}
    public func keep(_ guest: KeptGuest, cpr: CprController) throws(VMMError) {
        throw VMMError("the mode '\(name)' keeps no guest over an update of the host")
    }
    public func letGo(cpr: CprController) {}
    public func find(cpr: CprController) throws(VMMError) -> KeptGuest? { nil }
    public func finish(cpr: CprController) throws(VMMError) {}
}
