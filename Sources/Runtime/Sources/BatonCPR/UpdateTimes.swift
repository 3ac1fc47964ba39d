import BatonBase
import BatonMachine
import CBaton

/// When an update reached each of its phases: CLOCK_MONOTONIC in nanoseconds,
/// which goes on over the exec. 0 for a phase that has not been reached.
public struct UpdateTimes {
    /// The update was asked for; the guest has run its last instruction in the
    /// old process.
    public var requested: Int64 = 0
    /// The guest stands still, and its devices begin to drain.
    public var stopped: Int64 = 0
    /// No device has anything in hand.
    public var drained: Int64 = 0
    /// The checkpoint was written.
    public var saved: Int64 = 0
    /// The new VMM is about to be executed.
    public var exec: Int64 = 0
    /// How long the guest stood still for that. A duration.
    public var execPause: Int64 = 0
    /// The host's kernel has started since, and when it did: at 0, as the clock begins anew. The others before are
    /// of the clock of the kernel before, carried over by the time of day, and may be below 0.
    var hasNewHost = false
    /// `main` of the new process.
    public var started: Int64 = 0
    /// The machine of the new process stands.
    public var built: Int64 = 0
    /// How long the mapping of guest memory took, as part of that. A duration.
    public var mapping: Int64 = 0
    /// `cpr-load` was asked for.
    public var loadRequested: Int64 = 0
    /// Every device has its state.
    public var loaded: Int64 = 0
    /// The guest runs again.
    public var resumed: Int64 = 0
    /// How many updates this guest has been through.
    public var generation: UInt64 = 0

    public init() {}

    init(generation: UInt64) { self.generation = generation }

    private static let names: [(String, WritableKeyPath<UpdateTimes, Int64>)] = [
        ("requested-ns", \.requested), ("stopped-ns", \.stopped), ("drained-ns", \.drained), ("saved-ns", \.saved),
        ("exec-ns", \.exec), ("exec-pause-ns", \.execPause),
    ]

    func put(into writer: inout StateWriter) {
        for (name, path) in UpdateTimes.names {
            writer.put(name, UInt64(bitPattern: self[keyPath: path]), optional: true)
        }
        writer.put("generation", generation)
    }

    init(from reader: StateReader) throws(VMMError) {
        for (name, path) in UpdateTimes.names where reader.has(name) {
            self[keyPath: path] = Int64(try reader.unsigned(name, in: 0...UInt64(Int64.max)))
        }
        generation = try reader.unsigned("generation")
    }

    /// Takes over what the old VMM knows, beside what only this one does.
    mutating func take(from old: UpdateTimes) {
        let own = self
        self = old
        (started, built, mapping) = (own.started, own.built, own.mapping)
    }

    /// Carries the times of a guest that was kept over to this boot's clock.
    mutating func cameFrom(_ kept: CprState.Kept) {
        guard kept.boot != HostBoot.id else { return }
        let savedHere = EventLoop.now - max(0, cbaton_realtime_ns() - kept.savedAt)
        let apart = savedHere - saved
        for path in [\UpdateTimes.requested, \.stopped, \.drained, \.saved] { self[keyPath: path] += apart }
        hasNewHost = true
    }

    /// Whether the guest ran while the new VMM started.
    private var ranBeside: Bool { exec > 0 && exec < requested }

    /// The names in `report`, in order. `pause-us` is the change of hands, and the
    /// sum of the others but `exec-pause-us`; if the guest ran while the new VMM
    /// started (`ran-us`), without `exec-us`, `start-up-us` and `map-us` either.
    static let reportNames = [
        "pause-us", "exec-pause-us", "ran-us", "stop-us", "drain-us", "save-us", "wait-exec-us", "exec-us",
        "kexec-us", "boot-us", "start-up-us", "map-us",
        "wait-load-us", "load-us", "resume-us",
    ]

    /// The pause and its phases in microseconds, for `query-cpr`; nil until the
    /// guest has resumed.
    public var report: JSON? {
        guard resumed > 0, requested > 0 || hasNewHost else { return nil }
        // A guest that was kept waited for somebody to start a VMM.
        let isKept = exec == 0
        let durations = [
            resumed - requested, execPause, ranBeside ? requested - exec - execPause : 0, stopped - requested,
            drained - stopped, saved - drained, ranBeside || isKept ? 0 : exec - saved,
            isKept ? 0 : started - exec, hasNewHost ? -saved : 0,
            isKept ? started - (hasNewHost ? 0 : saved) : 0,
            built - started - mapping, mapping, loadRequested - (ranBeside ? saved : built),
            loaded - loadRequested, resumed - loaded,
        ]
        var result = JSONObject()
        for (name, duration) in zip(UpdateTimes.reportNames, durations) { result[name] = .int(max(0, duration / 1000)) }
        return .object(result)
    }
}
