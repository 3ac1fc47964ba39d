import BatonRuntime

/// A back end whose connection is kept over an update.
public class KeptNetBackend: NetBackend {
    /// Whether the guest is this process' own: until then nothing may be read
    /// from an inherited descriptor, nor written to it.
    fileprivate(set) var isCommitted: Bool

    init(id: String, backend: String, vm: VirtualMachine) {
        isCommitted = vm.cpr?.awaitsLoad != true
        super.init(id: id, backend: backend)
    }

    /// Saves the descriptors and hands the rest over. Nothing changes here:
    /// the guest may come back to this process.
    func handOver(to cpr: CprController) throws(VMMError) {}
    /// Takes over what has changed since this process was executed. Nothing may be
    /// read from a descriptor, nor written to it.
    func takeOver(_ changes: PartChanges) throws(VMMError) {}
    /// The guest is this process' own now.
    func committed() {}
    /// The guest goes on here: whatever a process that failed may have done is undone.
    func execFailed() {}
}

/// Keeps the connections of `-netdev` over an update.
public enum NetBackendUpdate {
    /// Takes part in the updates, once every back end stands.
    /// - Parameter backends: those that there are now, of which some come and go while the machine exists.
    public static func register(_ backends: @escaping () -> [NetBackend], cpr: CprController) {
        NetHeritage.closeLeftovers(cpr)
        func find() -> [KeptNetBackend] { backends().compactMap { $0 as? KeptNetBackend } }
        for backend in find() {
            cpr.onChange(of: backend) { [unowned backend] changes throws(VMMError) in try backend.takeOver(changes) }
        }
        cpr.onPhase { [unowned cpr] phase throws(VMMError) in
            let kept = find()
            switch phase {
            case .survey, .exec:
                for backend in kept { try backend.handOver(to: cpr) }
            case .saveFailed:
                for backend in kept {
                    cpr.forgetDescriptors(of: backend)
                    backend.execFailed()
                }
            case .commit:
                for backend in kept {
                    backend.isCommitted = true
                    backend.committed()
                }
            default: break
            }
        }
    }
}
