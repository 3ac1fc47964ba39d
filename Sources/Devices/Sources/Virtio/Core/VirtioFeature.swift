/// Feature bits that do not depend on the device (virtio 1.3, 6).
public enum VirtioFeature {
    public static let ringIndirect: UInt64 = 1 << 28
    public static let ringEventIndex: UInt64 = 1 << 29
    public static let version1: UInt64 = 1 << 32

    /// What every device here offers.
    public static let common = ringIndirect | ringEventIndex | version1
}

/// Bits of the device status field (virtio 1.3, 2.1).
public enum VirtioStatus {
    public static let acknowledge: UInt8 = 1
    public static let driver: UInt8 = 2
    public static let driverOK: UInt8 = 4
    public static let featuresOK: UInt8 = 8
    public static let needsReset: UInt8 = 64
    public static let failed: UInt8 = 128
    static let all: UInt8 = 1 | 2 | 4 | 8 | 64 | 128
}
