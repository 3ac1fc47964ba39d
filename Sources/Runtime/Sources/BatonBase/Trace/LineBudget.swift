/// How many lines of one kind a log may get: so many at once, and so many a second for ever.
///
/// Once it is used up nothing comes until a second's worth is there again, so that what is said about the lines in
/// between is one line a second and not one for each.
struct LineBudget {
    private let burst: Int64
    private let perSecond: Int64
    /// Lines left, in billionths.
    private var left: Int64
    private var refilledAt: Int64 = 0
    private var isClosed = false
    private var suppressed = 0

    private static let line: Int64 = 1_000_000_000

    init(burst: Int, perSecond: Int) {
        self.burst = Int64(burst) * LineBudget.line
        self.perSecond = Int64(perSecond)
        left = self.burst
    }

    /// Takes a line.
    /// - Parameter now: CLOCK_MONOTONIC in nanoseconds.
    /// - Returns: whether it may be written.
    mutating func take(at now: Int64) -> Bool {
        // More than ten seconds fill any of them.
        left = min(burst, left + min(max(0, now - refilledAt), 10 * LineBudget.line) * perSecond)
        refilledAt = now
        if isClosed, left >= perSecond * LineBudget.line { isClosed = false }
        guard !isClosed, left >= LineBudget.line else {
            isClosed = true
            suppressed += 1
            return false
        }
        left -= LineBudget.line
        return true
    }

    /// How many lines were not written since this was asked last.
    mutating func takeSuppressed() -> Int {
        defer { suppressed = 0 }
        return suppressed
    }
}
