/// What carries a virtio device to its driver: virtio-mmio here, PCI later.
/// Subclasses have the registers; this is what a device needs of them.
open class VirtioTransport {
    public init() {}

    /// A used buffer notification for a queue.
    open func interrupt(queue: Int) {}
    /// A configuration change notification.
    open func configInterrupt() {}
}
