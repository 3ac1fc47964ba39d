import BatonRuntime

/// Selectors of fw_cfg's items (QEMU's include/standard-headers/linux/qemu_fw_cfg.h and docs/specs/fw_cfg.rst).
package enum FwCfgKey {
    package static let signature: UInt16 = 0x00
    package static let interface: UInt16 = 0x01
    package static let uuid: UInt16 = 0x02
    package static let ramSize: UInt16 = 0x03
    package static let noGraphic: UInt16 = 0x04
    package static let cpuCount: UInt16 = 0x05
    package static let kernelAddress: UInt16 = 0x07
    package static let kernelSize: UInt16 = 0x08
    package static let initrdAddress: UInt16 = 0x0a
    package static let initrdSize: UInt16 = 0x0b
    package static let bootMenu: UInt16 = 0x0e
    package static let maxCPUs: UInt16 = 0x0f
    package static let kernelEntry: UInt16 = 0x10
    package static let kernelData: UInt16 = 0x11
    package static let initrdData: UInt16 = 0x12
    package static let commandLineAddress: UInt16 = 0x13
    package static let commandLineSize: UInt16 = 0x14
    package static let commandLineData: UInt16 = 0x15
    package static let setupAddress: UInt16 = 0x16
    package static let setupSize: UInt16 = 0x17
    package static let setupData: UInt16 = 0x18
    package static let directory: UInt16 = 0x19
    /// The first file.
    package static let files: UInt16 = 0x20
    /// Whether the interrupt of the timer arrives at pin 2; of x86 alone.
    package static let timerOverride: UInt16 = 0x8002
}

/// A file of fw_cfg's directory.
package struct FwCfgFile: Equatable {
    /// 1 to 55 bytes, such as `opt/org.example/name`.
    package let name: String
    package let bytes: [UInt8]

    package static let nameLimit = 55

    /// - Throws: what is wrong with the name.
    package init(_ name: String, _ bytes: [UInt8]) throws(VMMError) {
        guard !name.isEmpty else { throw VMMError("invalid argument(s)") }
        guard name.utf8.count <= FwCfgFile.nameLimit else {
            throw VMMError("name too long (max. \(FwCfgFile.nameLimit) char)")
        }
        guard !name.utf8.contains(0) else { throw VMMError("the name of a fw_cfg item has a zero byte in it") }
        self.name = name
        self.bytes = bytes
    }
}
