import BatonModules

// The stamp is of all floors, so it can only be here, above them: what carries or compares it is too.

extension ModuleDescriptor {
    /// Makes a descriptor that lives as long as the process.
    ///
    /// Compiled into the module, so that it carries the fingerprint of the
    /// runtime the module was compiled against, and a reference to the
    /// runtime's stamp by which the loader knows it before any code runs.
    /// - Parameters:
    ///   - kind: `mode`, `memory-backend`, `preserver`, `device` or `accel`.
    ///   - name: the name on the command line; with `kind` it must match the
    ///     module's file name.
    ///   - register: registers what the module provides; what it throws makes
    ///     the module be refused, and nothing of it stays.
    @_alwaysEmitIntoClient
    public static func make(
        kind: StaticString, name: StaticString, version: StaticString,
        register: @escaping (ModuleRegistrar) throws(VMMError) -> Void
    ) -> UnsafeRawPointer {
        _batonRuntimeStamp()
        return _make(kind, name, version, compiledFingerprint, register)
    }
}

extension ModuleLoader {
    /// - Parameter directories: absolute paths; by default those that the
    ///   environment names, the executable's directory and
    ///   `../lib/baton/modules` beside it.
    public convenience init(registry: ModuleRegistry, directories: [String]? = nil) {
        self.init(registry: registry, directories: directories, fingerprint: runtimeFingerprint.description)
    }
}
