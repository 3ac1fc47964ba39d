import BatonRuntime

/// What carries a virtio device to its driver: virtio-mmio or virtio-pci. It
/// has the registers; this is what a device needs of it.
public protocol VirtioTransport: AnyObject {
    /// A used buffer notification for a queue.
    func interrupt(queue: Int)
    /// A configuration change notification.
    func configInterrupt()
    /// What the driver's notification of a queue is: a write of `value` at an address of memory; nil while there is no
    /// place for it.
    func notification(queue: Int) -> VirtioNotification?
    /// Makes the events of an eventfd used buffer notifications for a queue; nil where only a call does that.
    /// - Parameters:
    ///   - mayBeDirect: whether `onEvent` may be left out at present.
    ///   - onEvent: an event has come that is to become an interrupt.
    func interruptEvent(
        queue: Int, event: Int32, mayBeDirect: @escaping () -> Bool, onEvent: @escaping () -> Void
    ) -> InterruptEvent?
}

extension VirtioTransport {
    public func interruptEvent(
        queue: Int, event: Int32, mayBeDirect: @escaping () -> Bool, onEvent: @escaping () -> Void
    ) -> InterruptEvent? { nil }
}

/// The write by which a driver notifies of a queue.
public struct VirtioNotification: Equatable {
    /// Guest-physical.
    public var address: UInt64
    /// In bytes; 0 for any.
    public var width: Int
    /// What is written; nil for anything.
    public var value: UInt64?
    /// What drivers use where `width` is 0.
    static let usualWidth = 2
}
