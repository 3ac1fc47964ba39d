import BatonRuntime

/// A QMP event that a guest can cause as often as it likes: at most one a second is emitted, as in QEMU, the last of
/// which says how things are.
final class SeldomEvent {
    private static let interval: Int64 = 1_000_000_000
    private let vm: VirtualMachine
    private let name: String
    private let data: () -> JSONObject
    private var nextAt: Int64 = 0
    private var timer: EventLoop.Timer?

    /// - Parameter data: what the event says when it is emitted.
    init(_ name: String, vm: VirtualMachine, data: @escaping () -> JSONObject) {
        (self.name, self.vm, self.data) = (name, vm, data)
    }

    deinit { timer?.cancel() }

    /// The last change is still to be told: in a saved state, by whoever goes on with the guest.
    private(set) var isOwed = false

    /// Something has changed.
    func report() {
        isOwed = true
        guard timer == nil else { return }
        let now = EventLoop.now
        if now < nextAt {
            timer = vm.loop.schedule(at: nextAt) { [weak self] in
                self?.timer = nil
                self?.report()
            }
            return
        }
        nextAt = now + SeldomEvent.interval
        isOwed = false
        vm.emit(name, data())
    }

    /// The machine runs again, here or in another process.
    func resume() {
        if isOwed { report() }
    }

    /// - Parameter isOwed: of the saved state.
    func restore(isOwed: Bool) { self.isOwed = isOwed }
}
