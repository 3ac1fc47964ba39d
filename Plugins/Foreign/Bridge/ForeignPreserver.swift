import BatonRuntime

/// A preserver whose methods are a foreign module's.
final class ForeignPreserver: FdPreserver {
    let name: String
    private let module: ForeignModule
    private let methods: MethodTable

    init(name: String, module: ForeignModule, methods: MethodTable) {
        self.name = name
        self.module = module
        self.methods = methods
    }

    func blockers(mode: String) -> [String] {
        var reasons = module.blockerReasons
        do throws(VMMError) {
            let promises = module.promises(ofMode: mode).rawValue
            try methods.call("check") { [$0.text(mode), .uint32(promises)] }
        } catch {
            reasons.append(error.message)
        }
        return reasons
    }

    func notify(_ phase: CprPhase, cpr: CprController) throws(VMMError) {
        if phase == .save { module.beginSave() }
        try methods.call(phase.rawValue)
        if phase == .exec { module.handOver(to: cpr) }
    }
}
