import BatonBase

/// A part of the machine that has state: it is reset, paused and resumed, and
/// goes through checkpoints.
///
/// Everything happens with the VM lock held (`VirtualMachine.lock`); an access of the guest may come from a CPU's
/// thread, everything else comes from the main one. A device is made in its power-on
/// state. The legal order of calls is `reset` (once before the first run, and
/// at every machine reset), then any number of `pause` / `resume` pairs, with
/// `save` only while paused. A load (`loader(of:)` and what it returns) comes
/// instead of the first `reset`: in a process that takes over a guest nothing
/// is reset, because a reset may load images into guest RAM. It may come again
/// when a load failed.
public protocol Device: AnyObject {
    /// Unique in the VM and the same in every start with the same command
    /// line; the name of the device's checkpoint section (`serial0`, or
    /// `BUS/MODEL` for one that is plugged).
    var stateName: String { get }
    /// The version written to checkpoints; a section of a higher version is
    /// refused before `load` is called.
    var stateVersion: UInt32 { get }
    /// Whether the state is that of power-on, for a device that machines of older versions lack: then it has no
    /// section, so that these can be updated from, and to. nil, by default, for one that always has one.
    var isAsAtPowerOn: Bool? { get }
    /// Puts the device into its power-on state.
    func reset()
    /// Takes nothing new in hand until `release` or `resume`, while CPUs run on: the device's state is about to be saved,
    /// or the process to be replaced.
    func hold()
    /// Whether anything is in hand that goes on beside the guest.
    var isBusy: Bool { get }
    /// What is in hand, as a message has it: `3 requests of drive 'hd'`.
    var workInHand: String { get }
    /// Ends `hold`.
    func release()
    /// `pause` follows at once. CPUs may still run: what takes long and need not wait for them, such as letting go of
    /// eventfds, is no part of the guest's pause here.
    func prepareToPause()
    /// Stops all activity that could change guest RAM or the device's state,
    /// and finishes what is in hand.
    func pause()
    /// Takes up activity again after `pause` or `load`.
    func resume()
    /// Writes the device's guest-visible and internal state.
    func save(to writer: inout StateWriter)
    /// Reads and checks a state, all of it, and changes nothing: another device
    /// may refuse its own.
    /// - Returns: what takes the state over, once every device has accepted its
    ///   own. It cannot fail.
    func loader(of reader: StateReader) throws(VMMError) -> () -> Void
}

extension Device {
    public var stateVersion: UInt32 { 1 }
    public var isAsAtPowerOn: Bool? { nil }
    /// Takes over a state of this device alone.
    /// - Throws: why not; nothing has changed.
    public func load(from reader: StateReader) throws(VMMError) { try loader(of: reader)() }
    public func hold() {}
    public var isBusy: Bool { false }
    public var workInHand: String { "work of '\(stateName)'" }
    public func release() {}
    public func prepareToPause() {}
    public func pause() {}
    public func resume() {}
}

/// One end of an interrupt wire: what a device drives and a controller sees.
public final class InterruptLine {
    /// The level that the device drives now.
    public private(set) var level = false
    private let sink: (Bool) -> Void
    private let onRenew: (() -> Void)?

    /// - Parameters:
    ///   - sink: told of every change of the level.
    ///   - renew: told of `renew`, by a controller that does not see how long a level lasts; nil for others.
    public init(_ sink: @escaping (Bool) -> Void, renew: (() -> Void)? = nil) {
        self.sink = sink
        onRenew = renew
    }

    /// The device has something new to say while its line is high, or the guest has dealt with a part of it.
    public func renew() {
        if level { onRenew?() }
    }

    /// Raises and lowers the line, for a controller that looks at edges.
    public func pulse() {
        set(true)
        set(false)
    }

    public func set(_ newLevel: Bool) {
        guard newLevel != level else { return }
        level = newLevel
        sink(newLevel)
    }
}
