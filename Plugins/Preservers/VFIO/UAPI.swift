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
        static let deviceGetHotResetInfo: UInt = 0x3b70
        static let deviceHotReset: UInt = 0x3b71
        /// Of a container.
        static let mapDMA: UInt = 0x3b71
        static let unmapDMA: UInt = 0x3b72
        static let deviceBindIOMMUFD: UInt = 0x3b76
        static let deviceAttachPT: UInt = 0x3b77
        static let deviceDetachPT: UInt = 0x3b78
    }

    /// Of a group's status.
    static let groupIsViable: UInt32 = 1

    /// Of the answer to `deviceGetHotResetInfo`.
    enum HotResetFlag {
        /// Devices have ids of an iommufd, not numbers of groups.
        static let deviceIDs: UInt32 = 1
        /// Every device is this iommufd's, or can be reset with those that are.
        static let owned: UInt32 = 2
    }

    enum HotResetID {
        static let notOwned = UInt32.max
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

    static func call(_ fd: Int32, _ request: UInt, _ value: Int32 = 0) -> Int32 {
        retryingInterrupts { ioctl(fd, request, value) }
    }
}

/// The kernel's iommufd interface, as in linux/iommufd.h. Every structure
/// begins with its size.
enum IOMMUFD {
    /// `_IO(IOMMUFD_TYPE, IOMMUFD_CMD_BASE + n)`.
    enum Request {
        static let destroy: UInt = 0x3b80
        static let ioasAlloc: UInt = 0x3b81
        static let ioasMap: UInt = 0x3b85
        static let ioasUnmap: UInt = 0x3b86
        static let ioasMapFile: UInt = 0x3b8f
        static let ioasChangeProcess: UInt = 0x3b92
    }

    enum MapFlag {
        static let fixedIOVA: UInt32 = 1
        static let writeable: UInt32 = 2
        static let readable: UInt32 = 4
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
