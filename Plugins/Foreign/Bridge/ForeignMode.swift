import BatonRuntime
import CBaton

/// A mode whose methods are a foreign module's.
final class ForeignMode: CprMode {
    let name: String
    let summary: String
    let promises: CprModePromises
    let neverHangs: Bool
    let allocatorHook: (any AllocatorHook)?
    private let module: ForeignModule
    private let methods: MethodTable
    private var section: String { "mode/\(name)" }

    /// - Throws: an error when the module promises what is unknown or cannot be.
    init(name: String, module: ForeignModule, methods: MethodTable) throws(VMMError) {
        self.name = name
        self.module = module
        self.methods = methods
        summary = methods["summary"]?.callForText() ?? "(a foreign module)"
        let known = UInt32(
            BATON_MODE_SAME_PID | BATON_MODE_SURVIVES_HOST_REBOOT | BATON_MODE_KEEPS_CONNECTIONS
                | BATON_MODE_EXECUTES | BATON_MODE_CONNECTS | BATON_MODE_SURVIVES_HOST_UPDATE)
        let memfds = UInt32(BATON_MODE_MEMFD_RAM), hangs = UInt32(BATON_MODE_NEVER_HANGS)
        let bits = try methods.promises(of: "mode", known: known | memfds | hangs)
        neverHangs = bits & hangs != 0
        promises = CprModePromises(rawValue: bits & known)
        if promises.contains(.executes), methods["exec"] == nil {
            throw VMMError("the mode promises to execute the new VMM, and has no 'exec'")
        }
        if promises.contains(.connects), methods["connect"] == nil || methods["receive"] == nil {
            throw VMMError("the mode promises to reach a new VMM, and lacks 'connect' or 'receive'")
        }
        if promises.contains(.survivesHostUpdate), methods["keep"] == nil || methods["find"] == nil {
            throw VMMError("the mode promises to keep guests over an update of the host, and lacks 'keep' or 'find'")
        }
        allocatorHook = bits & memfds != 0 ? MemfdAllocator(hookName: name) : nil
        module.mode = self
    }

    func leftBehind() { module.leave() }

    func blockers(cpr: CprController) -> [VMMError] {
        do throws(VMMError) { try methods.call("check") } catch { return [error] }
        return []
    }

    func volatileBlocks(cpr: CprController) -> [RAMBlock] {
        guard let function = methods["volatile"] else { return [] }
        return cpr.memory.blocks.enumerated().filter { index, _ in
            (try? function.call([.uint32(UInt32(truncatingIfNeeded: index))]) { $0.b })?.value == 1
        }.map(\.element)
    }

    func save(to container: inout SectionContainer, cpr: CprController) throws(VMMError) {
        module.beginSave()
        try methods.call("save")
        if let state = module.state { container.add(section, version: 1, state) }
    }

    func load(from container: SectionContainer, cpr: CprController) throws(VMMError) -> [String] {
        let found = container.sections.first { $0.name == section }
        var reader: StateReader?
        if let found { reader = try container.reader(found) }
        module.read(from: reader)
        try methods.call("load")
        return found == nil ? [] : [section]
    }

    func exec(_ argv: [String], cpr: CprController) throws(VMMError) {
        guard methods["exec"] != nil else { throw VMMError("mode '\(name)' cannot execute the new VMM") }
        module.arguments = argv
        defer { module.arguments = nil }
        try methods.call("exec")
    }

    func connect(_ channel: String, peer: UInt32?, cpr: CprController) throws(VMMError) {
        guard methods["connect"] != nil else { throw VMMError("mode '\(name)' reaches no new VMM") }
        module.isConnecting = true
        defer { module.isConnecting = false }
        try methods.call("connect") { [$0.text(channel), .int64(peer.map { Int64($0) } ?? -1)] }
    }

    func receive(_ channel: String, cpr: CprController) throws(VMMError) -> Int32 {
        guard let function = methods["receive"] else { throw VMMError("mode '\(name)' waits for no old VMM") }
        return try function.callForDescriptor([function.text(channel)]).release()
    }

    // MARK: A guest that stays

    func prepare(cpr: CprController) throws(VMMError) { try methods.call("prepare") }

    func keep(_ guest: KeptGuest, cpr: CprController) throws(VMMError) {
        guard methods["keep"] != nil else { throw VMMError("mode '\(name)' keeps no guest") }
        try methods.call("keep") { _ in [.int32(guest.state), .int32(guest.checkpoint)] }
    }

    func letGo(cpr: CprController) {
        do throws(VMMError) { try methods.call("let-go") } catch { Report.warning(error.message) }
    }

    func find(cpr: CprController) throws(VMMError) -> KeptGuest? {
        module.isFinding = true
        defer {
            module.isFinding = false
            module.found = nil
        }
        try methods.call("find")
        return module.found
    }

    func finish(cpr: CprController) throws(VMMError) { try methods.call("finish") }
}
