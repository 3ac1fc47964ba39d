import BatonBase
import BatonDeviceKit
import BatonMachine
import CBaton
import Glibc

/// Finds and loads modules.
///
/// A module's file name says what it provides: `libmode-NAME.so`,
/// `libmemory-backend-NAME.so`, `libpreserver-NAME.so`, `libdevice-NAME.so`,
/// `libaccel-NAME.so`, `libmachine-NAME.so`, `libblock-NAME.so` (the `lib` may be missing). Files are looked for beside the executable and
/// in the installed module directory; nothing is loaded that was not asked for.
public final class ModuleLoader {
    /// What kinds of module there are, longest prefix first.
    public static let kinds = ["memory-backend", "preserver", "foreign", "machine", "device", "accel", "block", "mode"]

    /// A module's file that has been found but not necessarily loaded.
    public struct Candidate {
        public let kind: String
        public let name: String
        public let path: String
        /// What a sandbox must leave it; nothing before it is loaded.
        var needs = ImageNeeds()
    }

    public let registry: ModuleRegistry
    /// Directories in order of precedence.
    public let directories: [String]
    /// Paths of the modules loaded so far.
    public private(set) var loaded: [Candidate] = []

    /// The fingerprint of this runtime.
    private let fingerprint: String

    /// - Parameters:
    ///   - directories: absolute paths; by default those that the
    ///     environment names, the executable's directory and
    ///     `../lib/baton/modules` beside it.
    ///   - fingerprint: of the runtime that the modules must fit.
    package init(registry: ModuleRegistry, directories: [String]?, fingerprint: String) {
        self.registry = registry
        self.fingerprint = fingerprint
        self.directories = directories ?? ModuleLoader.defaultDirectories()
    }

    /// The environment variable that names further directories, before all
    /// others: absolute paths, separated by colons.
    public static let environmentVariable = "BATON_MODULE_PATH"

    private static func defaultDirectories() -> [String] {
        var result: [String] = []
        // Who started a process that has more privileges than they must not
        // choose the code that it runs.
        if let list = getenv(environmentVariable).map({ String(cString: $0) }), cbaton_is_privileged() == 0 {
            for directory in list.split(separator: ":") {
                if directory.hasPrefix("/") {
                    result.append(String(directory))
                } else {
                    Report.warning(
                        "\(environmentVariable): '\(directory)' is not an absolute path, so it is not searched")
                }
            }
        }
        guard let resolved = realpath("/proc/self/exe", nil) else { return result }
        defer { free(resolved) }
        let executable = String(cString: resolved)
        guard let slash = executable.utf8.lastIndex(of: UInt8(ascii: "/")) else { return result }
        let directory = String(executable[..<slash])
        return result + [directory, directory + "/../lib/baton/modules"]
    }

    /// What a file name says: nil when it is not a module's.
    public static func parse(fileName: String) -> (kind: String, name: String)? {
        guard fileName.hasSuffix(".so") else { return nil }
        var stem = fileName.dropLast(3)
        if stem.hasPrefix("lib") { stem = stem.dropFirst(3) }
        for kind in kinds where stem.hasPrefix(kind + "-") && stem.utf8.count > kind.utf8.count + 1 {
            return (kind, String(stem.dropFirst(kind.count + 1)))
        }
        return nil
    }

    /// Every module file in the module directories; the first of a name wins.
    public func discover() -> [Candidate] {
        var found: [Candidate] = []
        for directory in directories {
            guard let handle = opendir(directory) else { continue }
            defer { closedir(handle) }
            while let entry = readdir(handle) {
                let fileName = withUnsafeBytes(of: &entry.pointee.d_name) { bytes in
                    String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
                }
                guard let (kind, name) = ModuleLoader.parse(fileName: fileName),
                    !found.contains(where: { $0.kind == kind && $0.name == name })
                else { continue }
                found.append(Candidate(kind: kind, name: name, path: directory + "/" + fileName))
            }
        }
        return found.sorted { ($0.kind, $0.name) < ($1.kind, $1.name) }
    }

    /// Loads the module that provides `kind` `name`, unless it is loaded.
    /// - Throws: an error that lists what is there when no file has that name.
    public func require(kind: String, name: String) throws(VMMError) {
        if loaded.contains(where: { $0.kind == kind && $0.name == name }) { return }
        if let path = find(kind: kind, name: name) { return try load(path: path) }
        let present = discover().filter { $0.kind == kind }.map(\.name)
        let list = present.isEmpty ? "none" : present.joined(separator: ", ")
        throw VMMError(
            "there is no \(kind) module '\(name)'",
            hint: "Modules of this kind: \(list). Searched: \(directories.joined(separator: ", ")). "
                + ModuleLoader.hint("A module elsewhere is loaded with -module PATH."))
    }

    /// What to do when a module has not been found.
    private static func hint(_ usual: String) -> String {
        hasProc ? usual : "Where the executable is cannot be known: /proc is not mounted."
    }

    /// Modules are found, and loaded, by what /proc says of this process.
    private static var hasProc: Bool { access("/proc/self/fd", F_OK) == 0 }

    /// The file of a module in the module directories, or nil.
    private func find(kind: String, name: String) -> String? {
        // A name with a slash would leave the module directories.
        guard !name.utf8.contains(UInt8(ascii: "/")) else { return nil }
        for directory in directories {
            for prefix in ["lib", ""] {
                let path = "\(directory)/\(prefix)\(kind)-\(name).so"
                if access(path, F_OK) == 0 { return path }
            }
        }
        return nil
    }

    /// The device type of that name; loads the module that its name stands
    /// for: `device-NAME` or `preserver-NAME`, where NAME is the type's or what
    /// is before one of its dashes, the longest first.
    /// - Returns: nil when there is no such type.
    /// - Throws: why a module of that name cannot be loaded.
    public func deviceType(_ name: String) throws(VMMError) -> (any DeviceType)? {
        try provider(of: name) { registry.deviceType(name) }
    }

    /// The type of network back ends of that name, found as a device type is.
    public func netBackendType(_ name: String) throws(VMMError) -> (any NetBackendType)? {
        try provider(of: name) { registry.netBackendType(name) }
    }

    /// The accelerator of that name, whose module is loaded if it is not yet.
    /// - Throws: QEMU's error when there is none.
    public func acceleratorType(_ name: String) throws(VMMError) -> any AcceleratorType {
        if let found = registry.acceleratorType(name) { return found }
        if let path = find(kind: "accel", name: name) { try load(path: path) }
        guard let found = registry.acceleratorType(name) else {
            throw VMMError(
                "invalid accelerator \(name)", hint: ModuleLoader.hint("Use -accel help to list the accelerators."))
        }
        return found
    }

    /// The machine type of that name, whose module is loaded if it is not yet.
    /// - Throws: QEMU's error when there is none.
    public func machineType(_ name: String) throws(VMMError) -> any MachineType {
        if let found = registry.machineType(name) { return found }
        if let path = find(kind: "machine", name: name) { try load(path: path) }
        guard let found = registry.machineType(name) else {
            throw VMMError(
                "unsupported machine type: \"\(name)\"",
                hint: ModuleLoader.hint("Use -machine help to list supported machines"))
        }
        return found
    }

    /// The block engine of that name, whose module is loaded if it is not yet.
    /// - Throws: why its module cannot be loaded.
    public func blockEngineType(_ name: String) throws(VMMError) -> any BlockEngineType {
        if let found = registry.blockEngineType(name) { return found }
        try require(kind: "block", name: name)
        guard let found = registry.blockEngineType(name) else {
            throw VMMError("the module 'block-\(name)' does not provide what it is named for")
        }
        return found
    }

    /// The kinds of module that provide types of devices, and of what goes with them.
    private static let providerKinds = ["device", "preserver"]

    /// The object type of that name; loads the module whose file says that it
    /// provides it, see `ObjectType`.
    /// - Returns: nil when there is no such type.
    /// - Throws: why its module cannot be loaded.
    public func objectType(_ name: String) throws(VMMError) -> (any ObjectType)? {
        if let found = registry.objectType(name) { return found }
        let wanted = String(name.map { $0 == "-" ? "_" : $0 })
        for candidate in discover() where ModuleLoader.providerKinds.contains(candidate.kind) {
            // A file that cannot be read says nothing.
            guard let fd = try? ModuleTrust.open(try ModuleTrust.canonicalPath(candidate.path)),
                let image = try? ModuleImage(fd: fd.raw, path: candidate.path), image.objectTypes.contains(wanted)
            else { continue }
            try load(path: candidate.path)
            break
        }
        return registry.objectType(name)
    }

    private func provider<Found>(of name: String, _ known: () -> Found?) throws(VMMError) -> Found? {
        if let found = known() { return found }
        var stem = Substring(name)
        while !stem.isEmpty {
            for kind in ModuleLoader.providerKinds {
                guard let path = find(kind: kind, name: String(stem)) else { continue }
                try load(path: path)
                if let found = known() { return found }
            }
            guard let dash = stem.utf8.lastIndex(of: UInt8(ascii: "-")) else { break }
            stem = stem[..<dash]
        }
        return nil
    }

    /// Loads one module: trust, ELF header and stamp, `dlopen`, descriptor,
    /// registration; each step with its own error, and all or nothing.
    public func load(path given: String) throws(VMMError) {
        let path = try ModuleTrust.canonicalPath(given)
        if loaded.contains(where: { $0.path == path }) { return }
        let fileName = String(
            path[(path.utf8.lastIndex(of: UInt8(ascii: "/")).map { path.utf8.index(after: $0) } ?? path.startIndex)...])
        guard let (kind, name) = ModuleLoader.parse(fileName: fileName) else {
            throw VMMError(
                "'\(given)' is not named as a module",
                hint: "A module's file is named KIND-NAME.so or libKIND-NAME.so; "
                    + "the kinds are \(ModuleLoader.kinds.joined(separator: ", ")).")
        }
        let fd = try ModuleTrust.open(path)
        let image = try ModuleImage(fd: fd.raw, path: path)
        guard image.exportsQuery else {
            throw VMMError("'\(path)' is not a Baton module (it does not export baton_module_query)")
        }
        if let stamp = image.stamp, stamp != fingerprint {
            throw wrongStamp(path, stamp)
        }
        guard ModuleLoader.hasProc else {
            throw VMMError(
                "module '\(path)' cannot be loaded: /proc is not mounted",
                hint: "A module is loaded by its open file, /proc/self/fd/N, so that it is the one that was checked.")
        }
        guard let handle = cbaton_dlopen("/proc/self/fd/\(fd.raw)") else {
            throw ModuleLoader.notLoadable(path, dlerror().map { String(cString: $0) } ?? "unknown error")
        }
        // The dynamic linker knows the module by that name, and would give it
        // out again for the next file of this number: the number stays taken.
        _ = fd.release()
        guard let symbol = dlsym(handle, BATON_MODULE_QUERY_SYMBOL) else {
            throw VMMError("'\(path)' is not a Baton module (it does not export baton_module_query)")
        }
        let query = unsafeBitCast(symbol, to: baton_module_query_fn.self)
        ModuleRegistrar.pending = nil
        guard let pointer = query() else {
            throw VMMError("'\(path)' is not a Baton module (its query function returns no descriptor)")
        }
        guard pointer.pointer(to: \.magic)?.pointee == 0x444f_4d4e_4f54_4142 else {
            throw VMMError("'\(path)' is not a Baton module (its descriptor has the wrong magic)")
        }
        let descriptor = try check(pointer, path: path, kind: kind, name: name)

        let registrar = ModuleRegistrar(module: "\(kind)-\(name)", path: path)
        try register(descriptor, registrar)
        try registry.commit(registrar)
        loaded.append(Candidate(kind: kind, name: name, path: path, needs: image.needs))
        Log.trace("module_load", "\(path)")
    }

    /// What calls foreign modules, whose module is loaded if it is not yet.
    private func bridge() throws(VMMError) -> any ForeignBridge {
        if let bridge = registry.bridge { return bridge }
        guard let candidate = discover().first(where: { $0.kind == "foreign" }) else {
            throw VMMError(
                "there is no module that calls foreign ones",
                hint: "Its kind is 'foreign'. Searched: \(directories.joined(separator: ", ")).")
        }
        try load(path: candidate.path)
        guard let bridge = registry.bridge else {
            throw VMMError("'\(candidate.path)' does not provide what calls foreign modules")
        }
        return bridge
    }

    /// Has the module stage what it provides.
    private func register(_ descriptor: baton_module_descriptor, _ registrar: ModuleRegistrar) throws(VMMError) {
        defer { registrar.close() }
        let path = registrar.path
        if descriptor.fingerprint == nil {
            do throws(VMMError) {
                let bridge = try bridge()
                let module = ForeignModule(name: registrar.module, registry: registry)
                try bridge.register(descriptor, module: module, registrar: registrar)
            } catch {
                throw error.prefixed("module '\(path)'")
            }
            if let failure = registrar.failure { throw failure }
            return
        }
        guard let register = descriptor.register_module else {
            throw VMMError("module '\(path)' has no register function")
        }
        let status = register(Unmanaged.passUnretained(registrar).toOpaque())
        if let failure = registrar.failure { throw failure.prefixed("module '\(path)' failed to register") }
        guard status == 0 else { throw VMMError("module '\(path)' failed to register (status \(status))") }
    }

    /// Bytes of the descriptor up to the tables of foreign modules.
    private static let headSize = MemoryLayout.offset(of: \baton_module_descriptor.methods) ?? .max

    /// Reads a module's descriptor and checks what is common to all modules.
    private func check(
        _ pointer: UnsafePointer<baton_module_descriptor>, path: String, kind: String, name: String
    ) throws(VMMError) -> baton_module_descriptor {
        func text(_ pointer: UnsafePointer<CChar>?) -> String { pointer.map { String(cString: $0) } ?? "" }
        // A field that the module does not know is not there to be read.
        var descriptor = baton_module_descriptor()
        let size = Int(UnsafeRawPointer(pointer).load(fromByteOffset: 8, as: UInt32.self))
        let abi = UnsafeRawPointer(pointer).load(fromByteOffset: 12, as: UInt32.self)
        guard abi == BATON_MODULE_ABI else {
            throw VMMError(
                "module '\(path)' was built for the module ABI \(abi), this is ABI \(BATON_MODULE_ABI)",
                hint: "Rebuild the module against this Baton.")
        }
        guard size >= ModuleLoader.headSize else {
            throw VMMError(
                "module '\(path)' has a descriptor of \(size) bytes, at least \(ModuleLoader.headSize) are needed")
        }
        withUnsafeMutableBytes(of: &descriptor) { target in
            target.copyMemory(from: UnsafeRawBufferPointer(start: pointer, count: min(size, target.count)))
        }
        if descriptor.fingerprint != nil, text(descriptor.fingerprint) != fingerprint {
            throw wrongStamp(path, text(descriptor.fingerprint))
        }
        guard text(descriptor.kind) == kind, text(descriptor.name) == name else {
            throw VMMError(
                "module '\(path)' provides \(text(descriptor.kind))-\(text(descriptor.name)), "
                    + "which is not what its file name says")
        }
        let known = descriptor.fingerprint == nil ? UInt64(BATON_NEEDS_ALL_METHODS) : 0
        guard descriptor.capabilities & ~known == 0 else {
            throw VMMError(
                "module '\(path)' needs capabilities that this Baton lacks (\(Hex(descriptor.capabilities & ~known)))")
        }
        return descriptor
    }

    /// The dynamic linker's text begins with the name by which it got the file.
    private static func notLoadable(_ path: String, _ text: String) -> VMMError {
        var reason = text[...]
        if reason.hasPrefix("/proc/self/fd/"), let colon = reason.utf8.firstIndex(of: UInt8(ascii: ":")) {
            reason = reason[reason.utf8.index(after: colon)...].drop { $0 == " " }
        }
        var hint: String?
        if reason.hasPrefix("undefined symbol: baton_") {
            hint = "The module needs a function of a later Baton: build it with the baton-module.h of this one."
        } else if reason.hasPrefix("undefined symbol: $s"), isOfRuntime(reason.dropFirst(20)) {
            hint = "The module was built against another Baton: rebuild it."
        }
        return VMMError("module '\(path)' cannot be loaded: \(reason)", hint: hint)
    }

    /// Whether a mangled Swift name, without its prefix, begins with one of the runtime's modules: `9BatonBase…`.
    private static func isOfRuntime(_ name: Substring) -> Bool {
        name.drop { $0.isNumber }.hasPrefix("Baton")
    }

    private func wrongStamp(_ path: String, _ stamp: String) -> VMMError {
        VMMError(
            "module '\(path)' was built against the runtime \(stamp), this is \(fingerprint)",
            hint: "Rebuild the module against this Baton.")
    }
}
