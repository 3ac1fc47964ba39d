import BatonRuntime
import Glibc

/// Calls to the kernel's tun driver (linux/if_tun.h).
enum TapInterface {
    private static let device = "/dev/net/tun"
    /// IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, IFF_MULTI_QUEUE.
    private static let tap: UInt16 = 0x2, noPacketInformation: UInt16 = 0x1000
    private static let header: UInt16 = 0x4000, multiQueue: UInt16 = 0x100
    /// TUNSETIFF, TUNGETIFF, TUNSETOFFLOAD, TUNGETVNETHDRSZ, TUNSETQUEUE.
    private static let setInterface: UInt = 0x4004_54ca, getInterface: UInt = 0x8004_54d2
    private static let setOffload: UInt = 0x4004_54d0, getHeaderSize: UInt = 0x8004_54d7
    private static let setQueue: UInt = 0x4004_54d9
    /// IFF_ATTACH_QUEUE, IFF_DETACH_QUEUE.
    private static let attachQueue: UInt16 = 0x200, detachQueue: UInt16 = 0x400

    /// `struct ifreq`: the name, and the flags in the union behind it.
    private static let requestSize = 40, nameSize = 16

    /// An attached queue.
    struct Queue {
        /// Owned by whoever has the value.
        var fd: Int32
        var interface: String
        /// Bytes before each frame.
        var headerSize: Int
    }

    /// Attaches one more queue to an interface, which is made if there is none
    /// of that name and the process may.
    /// - Parameter name: nil or with `%d`: the kernel chooses.
    static func attach(_ name: String?, multiQueue isMulti: Bool, header wantsHeader: Bool) throws(VMMError) -> Queue {
        let fd = try FD.open(device, O_RDWR | O_NONBLOCK)
        var request = [UInt8](repeating: 0, count: requestSize)
        let text = Array((name ?? "tap%d").utf8.prefix(nameSize - 1))
        request.replaceSubrange(0..<text.count, with: text)
        let flags = tap | noPacketInformation | (wantsHeader ? header : 0) | (isMulti ? multiQueue : 0)
        put(flags, &request)
        guard control(fd.raw, setInterface, &request) else {
            let code = errno
            var hint: String?
            if code == EPERM {
                hint = "Have root make it for this user: ip tuntap add \(name ?? "NAME") mode tap user USER"
            }
            if code == EINVAL {
                hint =
                    isMulti
                    ? "An interface for several queues is made with: ip tuntap add NAME mode tap multi_queue"
                    : "An interface made with multi_queue needs queues=2 or more."
            }
            throw .system("could not configure \(device) (\(name ?? "tap%d"))", errno: code, hint: hint)
        }
        var queue = try describe(fd.raw)
        queue.fd = fd.release()
        return queue
    }

    /// Looks at a queue that another program has attached.
    static func describe(_ fd: Int32) throws(VMMError) -> Queue {
        var request = [UInt8](repeating: 0, count: requestSize)
        guard control(fd, getInterface, &request) else { throw .system("fd \(fd) is not of a tap interface") }
        let flags = UInt16(request[nameSize]) | UInt16(request[nameSize + 1]) << 8
        guard flags & tap != 0, flags & noPacketInformation != 0 else {
            throw VMMError("fd \(fd) is not of a tap interface without packet information (IFF_TAP and IFF_NO_PI)")
        }
        var queue = Queue(
            fd: fd, interface: String(decoding: request[..<nameSize].prefix { $0 != 0 }, as: UTF8.self), headerSize: 0)
        guard flags & header != 0 else { return queue }
        // Until a driver says otherwise the kernel leaves nothing undone.
        var size = [UInt8](repeating: 0, count: 4)
        guard allow([], fd), control(fd, getHeaderSize, &size), size[0] >= 10,
            size[1...].allSatisfy({ $0 == 0 })
        else { throw .system("could not turn off the offloads of fd \(fd)") }
        queue.headerSize = Int(size[0])
        return queue
    }

    /// Says what the kernel may leave undone in the frames that it gives.
    static func allow(_ offloads: NetOffloads, _ fd: Int32) -> Bool {
        ioctl(fd, setOffload, CInt(truncatingIfNeeded: offloads.rawValue)) == 0
    }

    /// Has an attached queue take part in the interface's traffic, or not: what
    /// waits in one that no longer does is dropped.
    static func use(_ fd: Int32, _ isUsed: Bool) -> Bool {
        var request = [UInt8](repeating: 0, count: requestSize)
        put(isUsed ? attachQueue : detachQueue, &request)
        return control(fd, setQueue, &request)
    }

    private static func put(_ flags: UInt16, _ request: inout [UInt8]) {
        request.replaceSubrange(nameSize..<nameSize + 2, with: withUnsafeBytes(of: flags) { Array($0) })
    }

    private static func control(_ fd: Int32, _ request: UInt, _ argument: inout [UInt8]) -> Bool {
        argument.withUnsafeMutableBytes { bytes in
            guard let base = bytes.baseAddress else { return false }
            return retryingInterrupts { ioctl(fd, request, base) } >= 0
        }
    }
}
