import BatonBase
import BatonMachine

/// A virtio device whose queues are served outside of the VMM: by another
/// process or the kernel. What a module provides; the core has
/// the device's registers, its status and the checks of what the driver sets
/// up, for every transport (virtio-mmio, virtio-pci).
///
/// Everything happens with the VM lock held; `kick` may come from a CPU's thread. The order of calls is that of
/// `Device`; `start` and `stop` come in between as the driver starts and
/// resets the device, also while the VM is paused (a reset).
public protocol VirtioOffload: AnyObject {
    /// The name in state sections.
    var model: String { get }
    /// virtio 1.3, 5.
    var deviceID: UInt32 { get }
    /// Every feature that the driver is offered, with those of the rings; at
    /// least VIRTIO_F_VERSION_1. Does not change.
    var features: UInt64 { get }
    /// The largest size of each queue, a power of two up to 1024. Does not
    /// change.
    var queueSizes: [UInt16] { get }
    /// The configuration space at first, up to 256 bytes;
    /// `VirtioOffloadHost.configChanged` changes it.
    var config: [UInt8] { get }

    /// The device has been plugged. `host` outlives it.
    func plugged(into host: any VirtioOffloadHost)
    /// The driver has set DRIVER_OK: `host.driver` says how it set the device
    /// up. What cannot be carried out is a `host.fail`.
    func start()
    /// The driver or the machine resets the device. Nothing may touch the
    /// queues afterwards. Also called for a device that was not started.
    func stop()
    /// The driver has made buffers available in a queue; after `start` only.
    func kick(queue: Int)
    /// An eventfd that has the effect of `kick` without a call, for an accelerator that can count the driver's
    /// notifications there; nil when the device must see each. Asked for after `start`; borrowed for the device's life.
    func kickEvent(queue: Int) -> Int32?
    /// The driver writes the configuration space.
    /// - Parameters:
    ///   - offset: in bytes, may be beyond the end.
    ///   - width: 1, 2, 4 or 8.
    func writeConfig(offset: Int, width: Int, value: UInt64)

    /// Whether something goes on in the kernel or elsewhere that has to end before the guest is saved or handed over.
    var isBusy: Bool { get }
    /// What that is, as a message has it.
    var workInHand: String { get }

    /// As in `Device`, but the VM's run state says what for: `save-vm` is a
    /// save, in which whoever serves the queues may go on when the mode keeps
    /// its connections; for everything else it must come to rest.
    func pause()
    func resume()
    func save(to writer: inout StateWriter)
    /// Reads and checks what `save` wrote.
    /// - Returns: what applies it, once everything else was checked;
    ///   `host.driver` is the loaded one by then.
    func load(from reader: StateReader) throws(VMMError) -> () -> Void
}

extension VirtioOffload {
    public func kickEvent(queue: Int) -> Int32? { nil }
    public var isBusy: Bool { false }
    public var workInHand: String { "work of '\(model)'" }
}

/// How the driver has set up a queue. The rings lie in guest RAM, aligned as
/// virtio 1.3, 2.7 asks; each in one range of it.
public struct VirtioQueueSetup {
    public let index: Int
    /// A power of two, up to the queue's largest.
    public let size: UInt16
    /// Guest-physical addresses of descriptor table, available ring and used
    /// ring.
    public let descriptors: UInt64
    public let available: UInt64
    public let used: UInt64

    public init(index: Int, size: UInt16, descriptors: UInt64, available: UInt64, used: UInt64) {
        self.index = index
        self.size = size
        self.descriptors = descriptors
        self.available = available
        self.used = used
    }
}

/// What the driver has negotiated.
public struct VirtioDriverSetup {
    /// A subset of those offered.
    public let features: UInt64
    /// The queues that it uses, by index.
    public let queues: [VirtioQueueSetup]

    public init(features: UInt64, queues: [VirtioQueueSetup]) {
        self.features = features
        self.queues = queues
    }
}

/// What the core is to a `VirtioOffload`.
public protocol VirtioOffloadHost: AnyObject {
    /// The device's name in checkpoints, unique in the VM.
    var stateName: String { get }
    /// Nil unless the driver has set DRIVER_OK and the device has not failed.
    var driver: VirtioDriverSetup? { get }
    /// Interrupts the driver: buffers of a queue have been used.
    func usedBuffers(queue: Int)
    /// Makes the events of an eventfd interrupts of the driver as `usedBuffers` does, without a call where that can be.
    /// - Parameters:
    ///   - event: whoever serves the queue counts there. Borrowed until the result is removed.
    ///   - mayBeDirect: whether `onEvent` may be left out at present.
    ///   - onEvent: an event has come: `usedBuffers` makes it an interrupt.
    func interruptEvent(
        queue: Int, event: Int32, mayBeDirect: @escaping () -> Bool, onEvent: @escaping () -> Void
    ) -> InterruptEvent
    /// The configuration space is another; the driver is told.
    func configChanged(_ config: [UInt8])
    /// The device needs a reset by the driver (DEVICE_NEEDS_RESET), and is
    /// told of nothing before that.
    func fail(_ reason: String)
}

/// A device of sockets, virtio-vsock (virtio 1.2, 5.10), of which somebody else serves the queues of packets. The queue
/// of events, behind these, is the core's.
public protocol VsockOffload: VirtioOffload {}

/// What the core is to a `VsockOffload`.
public protocol VsockOffloadHost: VirtioOffloadHost {
    /// The connections of the guest's sockets are no more. The driver is told so when it can be
    /// (VIRTIO_VSOCK_EVENT_TRANSPORT_RESET), and reads the configuration space anew.
    func lostConnections()
}
