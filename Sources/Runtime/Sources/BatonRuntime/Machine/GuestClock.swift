import CBaton

/// The guest's time: the host's CLOCK_MONOTONIC plus an offset, in
/// nanoseconds. It goes on while the VM is stopped, as the host's does
/// (`-rtc clock=host`), unless `stopsWithVM`.
public final class GuestClock {
    private var offset: Int64
    private var stoppedAt: Int64?
    /// `-rtc clock=vm`: the clock stands still while the VM does.
    public var stopsWithVM = false

    /// Starts at 0.
    public init() { offset = -cbaton_monotonic_ns() }

    /// Nanoseconds of guest time; never goes back.
    @inline(__always)
    public var now: Int64 { stoppedAt ?? (cbaton_monotonic_ns() &+ offset) }

    /// The host's CLOCK_MONOTONIC when the guest's clock will show `guestTime`.
    public func hostTime(of guestTime: Int64) -> Int64 { guestTime &- offset }

    func vmStopped() { if stopsWithVM, stoppedAt == nil { stoppedAt = now } }
    func vmStarted() {
        guard let stoppedAt else { return }
        offset = stoppedAt - cbaton_monotonic_ns()
        self.stoppedAt = nil
    }

    /// The offset to CLOCK_MONOTONIC, valid on this host until it reboots.
    public var monotonicOffset: Int64 { offset }

    /// Makes the clock go on from a checkpoint of the same boot of this host.
    public func restore(monotonicOffset: Int64) { offset = monotonicOffset }
    /// Makes the clock go on from `now`.
    public func restore(now: Int64) { offset = now - cbaton_monotonic_ns() }
}
