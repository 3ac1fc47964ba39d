import BatonRuntime
import CVhost
import Glibc

/// An open `/dev/vhost-vsock`: one device of the kernel's, with its address and its two queues of packets
/// (linux/vhost.h). Owns its descriptor. Closing one takes long: `release` and `SlowClose` are for where that matters.
final class KernelVsock {
    static let path = "/dev/vhost-vsock"

    /// -1 once it has been given up.
    private var fd: Int32
    /// Those of virtio that it has.
    let features: UInt64
    /// It is of this process' memory.
    private var isOwned = false
    /// It has the guest's address.
    private(set) var hasAddress = false

    private init(_ file: consuming OwnedFD) throws(VMMError) {
        var found: UInt64 = 0
        let code = cvhost_features(file.raw, &found)
        guard code == 0 else { throw .system("vhost-vsock: vhost_dev_init failed", errno: code) }
        fd = file.release()
        features = found
    }

    /// Opens a device, which nobody notices before it has an address.
    /// - Throws: QEMU's error, and what to do.
    convenience init() throws(VMMError) {
        let file = HostAccess.open(KernelVsock.path, O_RDWR)
        guard file >= 0 else {
            let code = errno
            let hint: String? =
                switch code {
                case ENOENT, ENODEV, ENXIO:
                    "\(KernelVsock.path) is of the kernel's module vhost_vsock: modprobe vhost_vsock"
                case EACCES where HostAccess.socket < 0, EPERM where HostAccess.socket < 0:
                    "Who runs the VM must be able to read and write \(KernelVsock.path), as members of the group kvm may."
                default: nil
                }
            throw .system("vhost-vsock: failed to open vhost device", errno: code, hint: hint)
        }
        try self.init(OwnedFD(adopting: file))
    }

    /// Takes a device that somebody else has opened: `vhostfd=`.
    convenience init(given text: String, vm: VirtualMachine) throws(VMMError) {
        let file: Int32
        do throws(VMMError) {
            file = try vm.namedFDs.take(text)
        } catch {
            throw error.prefixed("vhost-vsock: unable to parse vhostfd")
        }
        try self.init(OwnedFD(adopting: file))
    }

    deinit { if fd >= 0 { close(fd) } }

    /// Gives the descriptor up, unclosed, to the caller.
    func release() -> Int32 {
        defer { fd = -1 }
        return fd
    }

    /// Makes the device one of this process', whose thread serves it from now on.
    func own() throws(VMMError) {
        guard !isOwned else { return }
        let code = cvhost_own(fd)
        guard code == 0 else {
            let hint = code == EBUSY ? "A device of the kernel's is one process' only: open another for this one." : nil
            throw .system("vhost-vsock: vhost_dev_init failed", errno: code, hint: hint)
        }
        isOwned = true
    }

    /// Has the device get what is sent to an address.
    func take(address: UInt32) throws(VMMError) {
        guard !hasAddress else { return }
        let code = cvhost_vsock_address(fd, UInt64(address))
        guard code == 0 else {
            let hint =
                code == EADDRINUSE ? "Another VM of this host has guest-cid=\(address): choose one that is free." : nil
            throw .system("vhost-vsock: unable to set guest cid", errno: code, hint: hint)
        }
        hasAddress = true
    }

    // MARK: Queues

    /// Has the kernel serve the queues that a driver has set up.
    /// - Parameter bases: by queue, the available ring's index to go on at.
    /// - Throws: what is wrong with them, or what the kernel refuses. No queue runs then.
    func start(
        _ driver: VirtioDriverSetup, bases: [UInt16], events: QueueEvents, in space: AddressSpace
    ) throws(VMMError) {
        guard driver.queues.map(\.index) == [0, 1] else {
            throw VMMError("the driver has not set up both queues of packets, which the kernel needs")
        }
        try check(cvhost_use_features(fd, driver.features), "features \(Hex(driver.features))")
        let ranges = space.ramRanges.filter { !$0.readOnly }.map {
            cvhost_range(start: $0.start, size: $0.size, host: UnsafeRawPointer($0.host))
        }
        try check(cvhost_use_memory(fd, ranges, ranges.count), "guest memory of \(ranges.count) ranges")
        for queue in driver.queues {
            let size = UInt64(queue.size)
            guard let descriptors = space.dma(queue.descriptors, length: 16 * size, writing: false),
                let available = space.dma(queue.available, length: 6 + 2 * size, writing: false),
                let used = space.dma(queue.used, length: 6 + 8 * size, writing: true)
            else { throw VMMError("queue \(queue.index) is not in memory that the kernel can reach") }
            var setup = cvhost_queue(
                index: UInt32(queue.index), size: UInt32(queue.size), base: UInt32(bases[queue.index]),
                descriptors: descriptors, available: available, used: used, kick: events.kicks[queue.index],
                call: events.calls[queue.index], error: events.error)
            try check(cvhost_use_queue(fd, &setup), "queue \(queue.index)")
        }
        try check(cvhost_vsock_run(fd, 1), "start of the queues")
    }

    /// Has the kernel let go of the queues.
    /// - Returns: by queue, the available ring's index that it has come to.
    func stop() throws(VMMError) -> [UInt16] {
        try check(cvhost_vsock_run(fd, 0), "stop of the queues")
        var bases: [UInt16] = []
        for index in 0..<VhostVsock.queueCount {
            var base: UInt32 = 0
            try check(cvhost_base(fd, UInt32(index), &base), "stop of queue \(index)")
            bases.append(UInt16(truncatingIfNeeded: base))
        }
        return bases
    }

    private func check(_ code: Int32, _ what: String) throws(VMMError) {
        guard code == 0 else { throw .system("the kernel refuses the \(what)", errno: code) }
    }
}
