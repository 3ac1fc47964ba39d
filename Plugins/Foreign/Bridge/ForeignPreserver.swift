import BatonRuntime
import CBaton

/// A preserver whose methods are a foreign module's. Its name is put before its
/// errors by who tells it of steps.
final class ForeignPreserver: FdPreserver {
    let name: String
    let neverHangs: Bool
    private let module: ForeignModule
    private let methods: MethodTable

    /// - Throws: an error when the module promises what is unknown.
    init(name: String, module: ForeignModule, methods: MethodTable) throws(VMMError) {
        self.name = name
        self.module = module
        self.methods = methods
        neverHangs = try methods.promises(of: "preserver", known: UInt32(BATON_PRESERVER_NEVER_HANGS)) != 0
    }

    /// Has the module's method called for the descriptors that it watches,
    /// which it may do from its first call on.
    static func listen(_ module: ForeignModule, _ methods: MethodTable) {
        guard let ready = methods["ready"] else { return }
        module.ready = { fd, events in
            do throws(VMMError) { try ready.callChecked([.int32(fd), .uint32(events)]) } catch {
                Report.warning(error.message)
            }
        }
    }

    func leftBehind() { module.leave() }

    func takesPart(_ cpr: CprController) { module.followChanges(cpr) }

    func blockers(mode: String) -> [String] {
        do throws(VMMError) {
            let promises = module.promises(ofMode: mode).rawValue
            try methods.call("check", named: false) { [$0.text(mode), .uint32(promises)] }
        } catch {
            return [error.message]
        }
        return []
    }

    func notify(_ phase: CprPhase, cpr: CprController) throws(VMMError) {
        switch phase {
        case .survey:
            return try module.survey(cpr) { () throws(VMMError) in try methods.call("survey", named: false) }
        case .save: module.beginSave()
        default: break
        }
        try methods.call(phase.rawValue, named: false)
        if phase == .exec { module.handOver(to: cpr) }
    }
}
