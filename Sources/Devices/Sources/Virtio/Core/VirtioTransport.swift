/// What carries a virtio device to its driver: virtio-mmio or virtio-pci. It
/// has the registers; this is what a device needs of it.
public protocol VirtioTransport: AnyObject {
    /// A used buffer notification for a queue.
    func interrupt(queue: Int)
    /// A configuration change notification.
    func configInterrupt()
}
