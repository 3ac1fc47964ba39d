import BatonRuntime
import Glibc
import VFIOPCI

/// The kernel's side of the VFIO interface, as in linux/vfio.h.
extension VFIO {
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

    enum MapFlag {
        static let read: UInt32 = 1
        static let write: UInt32 = 2
        static let vaddr: UInt32 = 4
    }

    enum UnmapFlag {
        static let all: UInt32 = 2
        static let vaddr: UInt32 = 4
    }

    static func call(_ fd: Int32, _ request: UInt, _ value: Int32 = 0) -> Int32 {
        retryingInterrupts { ioctl(fd, request, value) }
    }
}

extension VFIOArgument {
    /// - Returns: what ioctl(2) does, with errno.
    mutating func call(_ fd: Int32, _ request: UInt) -> Int32 {
        retryingInterrupts {
            withBytes { buffer in
                guard let base = buffer.baseAddress else { return -1 }
                return ioctl(fd, request, base)
            }
        }
    }
}
