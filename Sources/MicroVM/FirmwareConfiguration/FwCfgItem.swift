import BatonRuntime

/// Selectors of fw_cfg's items (QEMU's include/standard-headers/linux/qemu_fw_cfg.h and docs/specs/fw_cfg.rst).
public enum FwCfgKey {
    public static let signature: UInt16 = 0x00
    public static let interface: UInt16 = 0x01
    public static let uuid: UInt16 = 0x02
    public static let ramSize: UInt16 = 0x03
    public static let noGraphic: UInt16 = 0x04
    public static let cpuCount: UInt16 = 0x05
    public static let kernelAddress: UInt16 = 0x07
    public static let kernelSize: UInt16 = 0x08
    public static let initrdAddress: UInt16 = 0x0a
    public static let initrdSize: UInt16 = 0x0b
    public static let bootMenu: UInt16 = 0x0e
    public static let maxCPUs: UInt16 = 0x0f
    public static let kernelEntry: UInt16 = 0x10
    public static let kernelData: UInt16 = 0x11
    public static let initrdData: UInt16 = 0x12
    public static let commandLineAddress: UInt16 = 0x13
    public static let commandLineSize: UInt16 = 0x14
    public static let commandLineData: UInt16 = 0x15
    public static let setupAddress: UInt16 = 0x16
    public static let setupSize: UInt16 = 0x17
    public static let setupData: UInt16 = 0x18
    public static let directory: UInt16 = 0x19
    /// The first file.
    public static let files: UInt16 = 0x20
    /// Whether the interrupt of the timer arrives at pin 2; of x86 alone.
    public static let timerOverride: UInt16 = 0x8002
}

/// A file of fw_cfg's directory.
public struct FwCfgFile: Equatable {
    /// 1 to 55 bytes, such as `opt/org.example/name`.
    public let name: String
    public let bytes: [UInt8]

    static let nameLimit = 55

    /// - Throws: what is wrong with the name.
    public init(_ name: String, _ bytes: [UInt8]) throws(VMMError) {
        guard !name.isEmpty else { throw VMMError("invalid argument(s)") }
        guard name.utf8.count <= FwCfgFile.nameLimit else {
            throw VMMError("name too long (max. \(FwCfgFile.nameLimit) char)")
        }
        guard !name.utf8.contains(0) else { throw VMMError("the name of a fw_cfg item has a zero byte in it") }
        self.name = name
        self.bytes = bytes
    }
}
