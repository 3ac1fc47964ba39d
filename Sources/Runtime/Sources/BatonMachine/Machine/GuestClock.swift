import CBaton

/// The guest's time: the host's CLOCK_MONOTONIC plus an offset, in
/// nanoseconds. It goes on while the VM is stopped, as the host's does
/// (`-rtc clock=host`), unless `stopsWithVM`.
public final class GuestClock {
    private var offset: Int64
    private var stoppedAt: Int64?
    /// What `wallClock` is ahead of `now`, while the clock follows the VM.
    private var wallOffset: Int64 = 0
    /// `-rtc clock=vm`: the clock stands still while the VM does. To be set
    /// before the VM runs.
    public var stopsWithVM = false {
        didSet {
            guard stopsWithVM, !oldValue else { return }
            stoppedAt = now
            wallOffset = cbaton_realtime_ns() &- now
        }
    }

    /// `-rtc base=localtime`: nanoseconds that the guest's time of day is ahead of UTC. To be set before the VM runs.
    public var zone: Int64 = 0

    /// Starts at 0.
    public init() { offset = -cbaton_monotonic_ns() }

    /// Nanoseconds of guest time; never goes back.
    @inline(__always)
    public var now: Int64 { stoppedAt ?? (cbaton_monotonic_ns() &+ offset) }

    /// The time of day, for the guest's real-time clock, in nanoseconds since
    /// 1970: the host's (in its `zone`), or with `stopsWithVM` one that stands still with the VM.
    public var wallClock: Int64 { (stopsWithVM ? now &+ wallOffset : cbaton_realtime_ns()) &+ zone }

    /// The host's CLOCK_MONOTONIC when the guest's clock will show `guestTime`.
    public func hostTime(of guestTime: Int64) -> Int64 { guestTime &- offset }

    func vmStopped() { if stopsWithVM, stoppedAt == nil { stoppedAt = now } }
    func vmStarted() {
        guard let stoppedAt else { return }
        offset = stoppedAt &- cbaton_monotonic_ns()
        self.stoppedAt = nil
    }

    /// The offset to CLOCK_MONOTONIC, valid on this host until it reboots, when all that is `owed` is made up for.
    public var monotonicOffset: Int64 { offset &+ owed }
    /// The time of day that goes with `now`: earlier than `wallClock` by what is `owed`.
    package var wallClockOfNow: Int64 { wallClock &- owed }

    // MARK: Time that the guest was away

    /// Whether a long time is given to the guest in steps. A kernel that sees more than 20 seconds go by at once takes
    /// its CPUs to have stood still (soft lockups, stalls of RCU), unless the accelerator has a way to tell it. To be
    /// set before the VM runs.
    public var makesUpInSteps = false
    /// Nanoseconds that are still to be made up for.
    public private(set) var owed: Int64 = 0
    /// Nanoseconds of a step, and between two of them, in which the guest runs.
    public static let longestStep: Int64 = 8_000_000_000
    static let stepInterval: Int64 = 200_000_000

    /// - Parameter behind: nanoseconds to put the clock forward.
    private func owe(_ behind: Int64) {
        owed = makesUpInSteps && !stopsWithVM ? max(0, behind - GuestClock.longestStep) : 0
        offset &-= owed
    }

    /// The next step, if there is one to take.
    public func makeUp() {
        let step = min(owed, GuestClock.longestStep)
        offset &+= step
        owed -= step
    }

    /// Nanoseconds that the clock was put forward when a checkpoint of another boot of the host was loaded: as long as
    /// the guest was away. Other clocks of the guest's, which follow one of the host's that has begun anew, go on by as
    /// much from where they were.
    public private(set) var gap: Int64 = 0

    /// Makes the clock go on from a checkpoint of the same boot of this host.
    /// - Parameter now: what it showed then.
    public func restore(monotonicOffset: Int64, now: Int64) {
        offset = monotonicOffset
        gap = 0
        owe(cbaton_monotonic_ns() &+ offset &- now)
    }

    /// Makes the clock go on from a checkpoint of another boot: from `now`, when the VM is started, with `stopsWithVM`;
    /// else at once, and by `passed` nanoseconds later.
    /// - Parameter wallClock: what that was then.
    public func restore(now: Int64, wallClock: Int64, passed: Int64) {
        gap = stopsWithVM ? 0 : passed
        offset = now &+ gap &- cbaton_monotonic_ns()
        owe(gap)
        guard stopsWithVM else { return }
        stoppedAt = now
        wallOffset = wallClock &- zone &- now
    }
}
