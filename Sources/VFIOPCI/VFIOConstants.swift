import BatonRuntime

/// The device's side of the VFIO interface, as in linux/vfio.h.
public enum VFIO {
    public enum DeviceFlag {
        public static let reset: UInt32 = 1
        public static let pci: UInt32 = 2
    }

    public enum RegionFlag {
        public static let read: UInt32 = 1
        public static let write: UInt32 = 2
        public static let mmap: UInt32 = 4
        public static let capabilities: UInt32 = 8
    }

    public enum RegionCapability {
        public static let sparseMmap: UInt16 = 1
    }

    /// Of `struct vfio_irq_set`, and its size without data.
    public enum SetIRQs {
        public static let noData: UInt32 = 1
        public static let eventfds: UInt32 = 4
        public static let unmask: UInt32 = 16
        public static let trigger: UInt32 = 32
        public static let size = 20
    }

    /// Of PCI devices.
    public static let bars = 6
    public static let romRegion = 6
    public static let configRegion = 7
    public static let leastRegions: UInt32 = 8
    public static let leastIRQs: UInt32 = 3
}

extension PCICapabilityID {
    static let powerManagement: UInt8 = 0x01
    static let advancedFeatures: UInt8 = 0x13
}
