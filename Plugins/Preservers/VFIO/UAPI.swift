import BatonRuntime
import Glibc

/// The kernel's VFIO interface, as in linux/vfio.h.
enum VFIO {
    static let apiVersion: Int32 = 0

    enum Extension {
        static let type1: Int32 = 1
        static let type1v2: Int32 = 3
        static let unmapAll: Int32 = 9
        static let updateVaddr: Int32 = 10
    }

    /// `_IO(VFIO_TYPE, VFIO_BASE + n)`.
    enum Request {
        static let getAPIVersion: UInt = 0x3b64
        static let checkExtension: UInt = 0x3b65
        static let setIOMMU: UInt = 0x3b66
        static let groupGetStatus: UInt = 0x3b67
        static let groupSetContainer: UInt = 0x3b68
        static let groupGetDeviceFD: UInt = 0x3b6a
        static let deviceGetInfo: UInt = 0x3b6b
        static let deviceGetRegionInfo: UInt = 0x3b6c
        static let deviceGetIRQInfo: UInt = 0x3b6d
        static let deviceSetIRQs: UInt = 0x3b6e
        static let deviceReset: UInt = 0x3b6f
        static let mapDMA: UInt = 0x3b71
        static let unmapDMA: UInt = 0x3b72
    }

    /// Of a group's status.
    static let groupIsViable: UInt32 = 1

    enum DeviceFlag {
        static let reset: UInt32 = 1
        static let pci: UInt32 = 2
    }

    enum RegionFlag {
        static let read: UInt32 = 1
        static let write: UInt32 = 2
        static let mmap: UInt32 = 4
        static let capabilities: UInt32 = 8
    }

    enum RegionCapability {
        static let sparseMmap: UInt16 = 1
        static let mappableMSIX: UInt16 = 3
    }

    enum MapFlag {
        static let read: UInt32 = 1
        static let write: UInt32 = 2
        static let vaddr: UInt32 = 4
    }

    enum UnmapFlag {
        static let all: UInt32 = 2
        static let vaddr: UInt32 = 4
    }

    enum SetIRQs {
        static let noData: UInt32 = 1
        static let eventfds: UInt32 = 4
        static let unmask: UInt32 = 16
        static let trigger: UInt32 = 32
    }

    /// Of PCI devices.
    static let bars = 6
    static let configRegion = 7
    static let leastRegions: UInt32 = 8
    static let leastIRQs: UInt32 = 3

    static func call(_ fd: Int32, _ request: UInt, _ value: Int32 = 0) -> Int32 {
        retryingInterrupts { ioctl(fd, request, value) }
    }
}

/// The structure that a request takes, most of which begin with their size.
/// Offsets beyond the end read as 0: a kernel may say less than it should.
struct VFIOArgument {
    private(set) var bytes: [UInt8]

    /// A structure that begins with its size (`argsz`) and flags.
    init(size: Int, flags: UInt32 = 0) {
        bytes = Array(repeating: 0, count: max(size, 8))
        set(0, UInt32(truncatingIfNeeded: size))
        set(4, flags)
    }

    /// Any other.
    init(bytes: [UInt8]) { self.bytes = bytes }

    mutating func set<T: FixedWidthInteger & UnsignedInteger>(_ offset: Int, _ value: T) {
        for (index, byte) in littleEndianBytes(value).enumerated() where bytes.indices.contains(offset + index) {
            bytes[offset + index] = byte
        }
    }

    func value<T: FixedWidthInteger & UnsignedInteger>(_ offset: Int, as type: T.Type = T.self) -> T {
        guard offset >= 0, offset <= bytes.count - MemoryLayout<T>.size else { return 0 }
        var value: T = 0
        for index in 0..<MemoryLayout<T>.size { value |= T(bytes[offset + index]) << T(8 * index) }
        return value
    }

    /// - Returns: what ioctl(2) does, with errno.
    mutating func call(_ fd: Int32, _ request: UInt) -> Int32 {
        retryingInterrupts {
            bytes.withUnsafeMutableBytes { buffer in
                guard let base = buffer.baseAddress else { return -1 }
                return ioctl(fd, request, base)
            }
        }
    }
}
