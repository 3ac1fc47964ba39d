import BatonBase
import BatonCPR
import BatonMachine
import BatonQMP
import CBaton
import Glibc

/// A loaded foreign module, as the runtime sees it: what `struct baton_host`
/// stands for in the module's code. Never freed. Used by one thread at a time.
public final class ForeignModule {
    /// For error texts and as the owner of what it saves: `KIND-NAME`.
    public let name: String
    private let registry: ModuleRegistry

    /// What `baton_fail` was told in the call under way.
    private var failure: VMMError?
    /// Strings and bytes lent to the call under way.
    private var lent: [UnsafeMutableRawPointer] = []

    /// Fields put for the next process. A name can be put again.
    private var outgoing: [(name: String, put: (inout StateWriter) -> Void)] = []
    /// What can be got; nil when no process before put anything.
    private var incoming: StateReader?
    private var hasLookedForState = false

    private var blockers: [UInt32: CprBlocker] = [:]
    private var lastBlocker: UInt32 = 0

    /// Called when a watched descriptor has BATON_FD_* events; nil for a module
    /// that has no method for it.
    public var ready: ((_ fd: Int32, _ events: UInt32) -> Void)?
    private var watched: Set<Int32> = []
    /// A call of the module did not come back, and there is to be no other.
    public private(set) var isLeft = false
    /// Descriptors that a module can watch at a time.
    private static let watchLimit = 1024

    /// The events of the module's table.
    public var events: [String: [QMPMember]] = [:]
    /// In a memory backend's `check` and `make`: the object's own options.
    public var options: KeyValueOptions?
    /// In a mode's methods: the mode and, in `exec`, the new VMM's arguments.
    public var mode: (any CprMode)?
    public var arguments: [String]?
    /// Whether the mode's `find` is being called, and what that has found.
    public var isFinding = false
    public var found: KeptGuest?
    /// Whether the mode's `connect` is being called.
    public var isConnecting = false

    /// - Parameters:
    ///   - name: KIND-NAME.
    ///   - registry: where the module is registered.
    public init(name: String, registry: ModuleRegistry) {
        self.name = name
        self.registry = registry
        ForeignModule.all.append(self)
    }

    /// What updates the VM; nil where there is none, such as for `-module help`.
    var cpr: CprController? { registry.cpr }
    /// The descriptors that clients have given with `getfd`.
    public var namedFDs: NamedFDs? { cpr?.vm.namedFDs }

    /// What a mode promises; nothing when there is none of that name.
    public func promises(ofMode name: String) -> CprModePromises { registry.mode(name)?.promises ?? [] }

    // MARK: The handle

    /// Every foreign module: a handle that is none of these is not used.
    nonisolated(unsafe) private static var all: [ForeignModule] = []

    /// The `struct baton_host *` of the module.
    public var handle: OpaquePointer { OpaquePointer(Unmanaged.passUnretained(self).toOpaque()) }

    /// The module behind a handle that C code gave; nil for anything else.
    static func find(_ handle: OpaquePointer?) -> ForeignModule? { all.first { $0.handle == handle } }

    // MARK: Calls

    /// To be called when a call into the module has returned: ends what was
    /// lent to it.
    /// - Returns: what `baton_fail` was told in it.
    public func callEnded() -> VMMError? {
        for memory in lent { free(memory) }
        lent = []
        defer { failure = nil }
        return failure
    }

    /// No call of the module is to follow: one has not come back.
    public func leave() {
        isLeft = true
        for fd in watched { unwatch(fd) }
    }

    func fail(_ error: VMMError) -> Int32 {
        failure = error
        return 1
    }

    /// Carries out a runtime function for C: its status, and the failure kept.
    func attempt(_ body: () throws(VMMError) -> Void) -> Int32 {
        do throws(VMMError) {
            try body()
            return 0
        } catch {
            return fail(error)
        }
    }

    /// A copy that lives until the call under way has returned, with a zero
    /// behind it.
    public func lend(_ bytes: [UInt8]) -> UnsafeMutableRawPointer? {
        guard let memory = malloc(bytes.count + 1) else { return nil }
        lent.append(memory)
        memory.copyMemory(from: bytes, byteCount: bytes.count)
        memory.storeBytes(of: 0, toByteOffset: bytes.count, as: UInt8.self)
        return memory
    }

    public func lend(_ text: String) -> UnsafePointer<CChar>? {
        lend(Array(text.utf8)).map { UnsafePointer($0.assumingMemoryBound(to: CChar.self)) }
    }

    // MARK: State

    /// The part of the CPR state that the module's fields cross an exec in.
    private var part: String { "module/\(name)" }

    /// Forgets what was put: a new save begins.
    public func beginSave() { outgoing = [] }

    /// Carries out a survey, which must not disturb a save that waits for its
    /// exec: hands over what is put in `body`, and then forgets it.
    public func survey(_ cpr: CprController, _ body: () throws(VMMError) -> Void) throws(VMMError) {
        let saved = outgoing
        outgoing = []
        defer { outgoing = saved }
        try body()
        handOver(to: cpr)
    }

    /// What was put since `beginSave`; nil when nothing was.
    public var state: StateWriter? {
        guard !outgoing.isEmpty else { return nil }
        var writer = StateWriter()
        for field in outgoing { field.put(&writer) }
        return writer
    }

    /// Hands over to the next process what was put.
    public func handOver(to cpr: CprController) {
        if let state { cpr.handOver(part, state) }
    }

    /// Reads from a section of the checkpoint instead of the CPR state.
    public func read(from section: StateReader?) {
        incoming = section
        hasLookedForState = true
    }

    /// In a process that has not taken its guest over: takes over what the module
    /// has put, and the descriptors that it has saved, since this process was
    /// executed. It finds both from `load` on.
    public func followChanges(_ cpr: CprController) {
        cpr.onChange(of: part, fds: "\(name)/") { [unowned self, unowned cpr] changes throws(VMMError) in
            for (key, fd) in changes.newDescriptors {
                cpr.fds.delete(key.name, id: key.id)
                try cpr.fds.save(key.name, id: key.id, fd)
            }
            for key in changes.goneDescriptors { cpr.fds.delete(key.name, id: key.id) }
            if changes.isGone { incoming = nil }
            if let state = changes.state {
                incoming = state
                hasLookedForState = true
            }
        }
    }

    func put(_ field: String, _ body: @escaping (inout StateWriter) -> Void) throws(VMMError) {
        try ForeignModule.check(field, "the name of a field")
        outgoing.removeAll { $0.name == field }
        outgoing.append((field, body))
    }

    func inherited() throws(VMMError) -> StateReader? {
        if !hasLookedForState {
            incoming = try cpr?.inherited?.part(part)
            hasLookedForState = true
        }
        return incoming
    }

    // MARK: Descriptors

    /// The name under which a module's descriptor is saved: its own names
    /// clash with no other part's.
    func fdName(_ given: String) throws(VMMError) -> String {
        try ForeignModule.check(given, "the name of a descriptor")
        return "\(name)/\(given)"
    }

    private static func check(_ text: String, _ what: String) throws(VMMError) {
        guard (1...200).contains(text.utf8.count) else {
            throw VMMError("\(what) must have 1 to 200 bytes, not \(text.utf8.count)")
        }
    }

    // MARK: Blockers

    /// - Returns: a number that no blocker of the module has, not 0.
    func addBlocker(_ reason: String) throws(VMMError) -> UInt32 {
        guard let cpr else { throw VMMError("there is no VM that could be updated") }
        let blocker = try cpr.addBlocker(VMMError("\(name): \(reason)"))
        repeat { lastBlocker &+= 1 } while lastBlocker == 0 || blockers[lastBlocker] != nil
        blockers[lastBlocker] = blocker
        return lastBlocker
    }

    func removeBlocker(_ number: UInt32) {
        if let blocker = blockers.removeValue(forKey: number) { cpr?.removeBlocker(blocker) }
    }

    // MARK: Watched descriptors

    func watch(_ fd: Int32, _ events: UInt32) throws(VMMError) {
        guard let cpr else { throw VMMError("there is no VM whose event loop could watch it") }
        guard ready != nil else { throw VMMError("a module that watches descriptors needs the method 'ready'") }
        guard !cpr.isTrial else { throw VMMError("a trial run must not touch descriptors") }
        guard events & ~UInt32(BATON_FD_READABLE | BATON_FD_WRITABLE) == 0 else {
            throw VMMError("\(events) are no events to watch for", hint: "Use BATON_FD_READABLE and BATON_FD_WRITABLE.")
        }
        let isNew = !watched.contains(fd)
        guard !isNew || !cpr.vm.loop.isWatched(fd) else {
            throw VMMError("\(fd) is another part's descriptor, which watches it")
        }
        guard !isNew || watched.count < ForeignModule.watchLimit else {
            throw VMMError("\(watched.count) descriptors are watched already")
        }
        var wanted: IOEvents = []
        if events & UInt32(BATON_FD_READABLE) != 0 { wanted.formUnion([.readable, .readHangup]) }
        if events & UInt32(BATON_FD_WRITABLE) != 0 { wanted.insert(.writable) }
        try cpr.vm.loop.watch(fd, wanted) { [unowned self] events in
            var happened: UInt32 = 0
            if events.contains(.readable) { happened |= UInt32(BATON_FD_READABLE) }
            if events.contains(.writable) { happened |= UInt32(BATON_FD_WRITABLE) }
            if !events.isDisjoint(with: [.hangup, .readHangup]) { happened |= UInt32(BATON_FD_CLOSED) }
            if events.contains(.error) { happened |= UInt32(BATON_FD_FAILED) }
            ready?(fd, happened)
        }
        watched.insert(fd)
    }

    func unwatch(_ fd: Int32) {
        if watched.remove(fd) != nil { cpr?.vm.loop.unwatch(fd) }
    }
}
