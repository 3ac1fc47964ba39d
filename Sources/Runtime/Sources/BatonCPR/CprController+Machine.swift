import BatonBase
import BatonMachine

/// What updates are to the parts of the machine.
extension CprController: MachineHandover {
    public var isSuccessor: Bool { inherited.map { $0.kept == nil } ?? false }
    public var hasOwnCommandLine: Bool { inherited?.isSent == true }

    public func inheritedPart(_ name: String) throws(VMMError) -> StateReader? {
        // A part that comes later, under the name of one that has gone, is new.
        awaitsLoad ? try inherited?.part(name) : nil
    }

    public func takePart(
        handOver: @escaping () throws(VMMError) -> Void, failed: @escaping () -> Void, committed: @escaping () -> Void
    ) {
        onPhase { phase throws(VMMError) in
            switch phase {
            case .survey, .exec: try handOver()
            case .saveFailed: failed()
            case .commit: committed()
            default: break
            }
        }
    }
}

extension VirtualMachine {
    /// What updates this VM; nil in a VM that cannot be updated.
    public var cpr: CprController? { handover as? CprController }
}

/// What has the preservers of an update: the registry of modules, which is above.
public protocol PreserverRegistry: AnyObject {
    /// In the order of their registration.
    var preservers: [any FdPreserver] { get }
}
