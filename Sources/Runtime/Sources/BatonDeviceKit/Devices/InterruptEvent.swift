import BatonBase
import BatonMachine
import CBaton

/// An eventfd of whoever serves a device elsewhere, whose events are interrupts: sent without this process where the
/// device has a message for them that the accelerator can send, else by the loop.
///
/// The loop looks after the eventfd while there is no message (masked, off, another kind of interrupt), so that pending
/// bits are right. While the machine is paused events wait in the eventfd, which is then free to be another process';
/// those before have been sent when `pause` returns.
///
/// Everything with the VM lock held.
public final class InterruptEvent {
    /// Borrowed.
    private let event: Int32
    private let vm: VirtualMachine
    private let message: () -> (address: UInt64, data: UInt32)?
    private let onEvent: () -> Void
    private var route: (any MessageRoute)?
    /// Between `resume` and `pause`.
    private var isActive = false
    /// Whether events are interrupts without this process.
    public private(set) var isDirect = false

    /// - Parameters:
    ///   - event: an eventfd. Borrowed until `remove`.
    ///   - message: what an event sends; nil while it is not to be sent at once, or not as a message.
    ///   - onEvent: one or more events have come that were not sent.
    public init(
        vm: VirtualMachine, event: Int32, message: @escaping () -> (address: UInt64, data: UInt32)?,
        onEvent: @escaping () -> Void
    ) {
        (self.vm, self.event, self.message, self.onEvent) = (vm, event, message, onEvent)
    }

    deinit { remove() }

    /// The machine runs. The loop looks after the eventfd at first: routes are set up when the guest runs, which waits
    /// for nothing more that way.
    public func resume() throws(VMMError) {
        guard !isActive else { return }
        try watch()
        isActive = true
        vm.loop.later { [weak self] in self?.update() }
    }

    /// Takes long where the accelerator has to wait for others to look away from the eventfd: `Device.prepareToPause` is
    /// the time for it.
    public func pause() {
        guard isActive else { return }
        isActive = false
        if isDirect { mask() } else { vm.loop.unwatch(event) }
    }

    /// The eventfd is not looked after any more, and may be closed.
    public func remove() {
        pause()
        route?.remove()
        route = nil
    }

    /// There may be a message now, or another, or none.
    public func update() {
        guard isActive else { return }
        if let (address, data) = message(), let route = madeRoute, route.set(address: address, data: data) {
            guard !isDirect else { return }
            isDirect = true
            // What waits in the eventfd is sent by the route.
            return vm.loop.unwatch(event)
        }
        guard isDirect else { return }
        mask()
        do throws(VMMError) { try watch() } catch { Report.error(error) }
    }

    /// Looks for events that have come, before the loop does: for whoever asks for pending bits.
    public func collect() {
        guard isActive, !isDirect, cbaton_eventfd_take(event) > 0 else { return }
        onEvent()
    }

    private var madeRoute: (any MessageRoute)? {
        if route == nil { route = vm.accelerator?.makeMessageRoute(event: event) }
        return route
    }

    private func mask() {
        isDirect = false
        route?.mask()
    }

    private func watch() throws(VMMError) {
        try vm.loop.watch(event, .readable) { [weak self] _ in self?.collect() }
    }
}
