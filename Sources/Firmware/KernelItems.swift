import BatonRuntime

/// A kernel for firmware, as items of fw_cfg.
package struct KernelItems {
    package private(set) var items: [(key: UInt16, bytes: [UInt8])] = []
    package private(set) var files: [FwCfgFile] = []

    package init() {}

    package mutating func add(_ key: UInt16, _ bytes: [UInt8]) { items.append((key, bytes)) }
    package mutating func add(_ key: UInt16, _ value: UInt32) { add(key, littleEndianBytes(value)) }
    package mutating func add(_ file: FwCfgFile) { files.append(file) }

    /// The kernel's command line, with the zero at its end.
    package mutating func addCommandLine(_ line: [UInt8]) {
        add(FwCfgKey.commandLineSize, UInt32(line.count))
        add(FwCfgKey.commandLineData, line)
    }
}
