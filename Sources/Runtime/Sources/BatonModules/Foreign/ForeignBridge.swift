import BatonBase
import CBaton

/// Makes a foreign module's tables into what the runtime's registry holds: what
/// a module of the kind `foreign` provides. A module of its own, so that a VM without foreign
/// modules has no library for calling them to load.
public protocol ForeignBridge: AnyObject {
    /// Checks a module's tables, calls its `init`, and registers what it
    /// provides.
    /// - Parameters:
    ///   - descriptor: checked as far as it is common to all modules.
    ///   - module: the module, known to the runtime's C functions by now.
    /// - Throws: what is wrong with the module, which then stays unused.
    func register(
        _ descriptor: baton_module_descriptor, module: ForeignModule, registrar: ModuleRegistrar
    ) throws(VMMError)
}
