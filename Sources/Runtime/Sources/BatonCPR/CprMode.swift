import BatonBase
import BatonMachine

/// What a mode promises; the test harness checks just that.
public struct CprModePromises: OptionSet {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    /// The new VMM has the old one's PID.
    public static let samePID = CprModePromises(rawValue: 1)
    /// The checkpoint can be loaded after the host has been rebooted.
    public static let survivesHostReboot = CprModePromises(rawValue: 2)
    /// Connections of clients and devices stay open.
    public static let keepsConnections = CprModePromises(rawValue: 4)
}

/// A way of replacing the VMM: what `-cpr-enable NAME` enables and `cpr-save`
/// names. Implemented by modules named `mode-NAME`.
///
/// While one of its methods runs, nothing else does; not all of them come on
/// the main thread, see `FdPreserver`. `name` is what the command line says.
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
    /// A mode without `cpr-exec` throws.
    /// - Throws: why nothing is to be executed.
    func exec(_ argv: [String], cpr: CprController) throws(VMMError)
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
}
