/// When an update reached each of its phases: CLOCK_MONOTONIC in nanoseconds,
/// which goes on over the exec. 0 for a phase that has not been reached.
public struct UpdateTimes {
    /// The guest ran its last instruction in the old process.
    public var stopped: Int64 = 0
    /// The checkpoint was written.
    public var saved: Int64 = 0
    /// `execve` is about to be called.
    public var exec: Int64 = 0
    /// `main` of the new process.
    public var started: Int64 = 0
    /// The machine of the new process stands.
    public var built: Int64 = 0
    /// `cpr-load` was asked for.
    public var loadRequested: Int64 = 0
    /// Every device has its state.
    public var loaded: Int64 = 0
    /// The guest runs again.
    public var resumed: Int64 = 0
    /// How many updates this guest has been through.
    public var generation: UInt64 = 0

    public init() {}

    private static let names: [(String, WritableKeyPath<UpdateTimes, Int64>)] = [
        ("stopped-ns", \.stopped), ("saved-ns", \.saved), ("exec-ns", \.exec),
    ]

    func put(into writer: inout StateWriter) {
        for (name, path) in UpdateTimes.names { writer.put(name, UInt64(bitPattern: self[keyPath: path])) }
        writer.put("generation", generation)
    }

    init(from reader: StateReader) throws(VMMError) {
        for (name, path) in UpdateTimes.names {
            self[keyPath: path] = Int64(try reader.unsigned(name, in: 0...UInt64(Int64.max)))
        }
        generation = try reader.unsigned("generation")
    }

    /// The pause and its phases in microseconds, for `query-cpr`; nil until the
    /// guest has resumed.
    public var report: JSON? {
        guard resumed > 0, stopped > 0 else { return nil }
        func micro(_ from: Int64, _ to: Int64) -> JSON { .int(max(0, (to - from) / 1000)) }
        return [
            "pause-us": micro(stopped, resumed),
            "save-us": micro(stopped, saved),
            "wait-exec-us": micro(saved, exec),
            "exec-us": micro(exec, started),
            "start-up-us": micro(started, built),
            "wait-load-us": micro(built, loadRequested),
            "load-us": micro(loadRequested, loaded),
            "resume-us": micro(loaded, resumed),
        ]
    }
}
