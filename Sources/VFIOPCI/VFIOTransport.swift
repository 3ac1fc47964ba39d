import Glibc

/// What is asked about a device, with the structures of linux/vfio.h.
public enum VFIOQuery {
    case deviceInfo
    case regionInfo
    case irqInfo
}

/// How a VFIO device is reached: by the kernel's descriptor of it, or over a
/// connection to a vfio-user server.
///
/// Methods answer with an error number, 0 for success. They are called with the
/// VM lock held, on the main thread or (an access of the guest's) a CPU's, and
/// may block for as long as the device takes to answer.
public protocol VFIOTransport: AnyObject {
    /// Has `argument`, whose index is set, filled in. Its size stays the same:
    /// an answer that is longer says so in its first field.
    func ask(_ query: VFIOQuery, _ argument: inout VFIOArgument) -> Int32

    /// Reads from a region.
    /// - Parameter offset: within the region, as is `offset + bytes.count`.
    func read(_ region: VFIORegion, at offset: UInt64, into bytes: UnsafeMutableRawBufferPointer) -> Int32
    func write(_ region: VFIORegion, at offset: UInt64, from bytes: UnsafeRawBufferPointer) -> Int32

    /// Has the device signal these eventfds, from the first interrupt of an
    /// index on; they stay the caller's.
    func setEvents(_ index: UInt32, _ events: [Int32]) -> Int32
    /// Disables all interrupts of an index.
    func disableInterrupts(_ index: UInt32) -> Int32
    /// Ends the mask that the device has put on INTx when it signalled it.
    func unmaskINTx() -> Int32

    func reset() -> Int32
    /// Resets the device with everything that shares its slot or bus.
    func resetBus() -> Int32

    /// Where a region can be mapped from, if it can. The descriptor stays the
    /// transport's.
    func file(of region: VFIORegion) -> (fd: Int32, offset: UInt64)?
    /// Whether another process can shorten these files.
    var filesMayShrink: Bool { get }
}

extension VFIOTransport {
    public func resetBus() -> Int32 { ENOTTY }
}
