import BatonRuntime
import Firmware

/// The files that firmware expects of the board.
extension FwCfg {
    /// Adds the memory map, the ACPI tables and what to start from.
    /// - Parameters:
    ///   - tables: nil with `acpi=off`.
    ///   - bootOrder: devices by `bootindex`, as firmware names them, such as
    ///     `/virtio-mmio@00000000feb00e00/disk@0,0`.
    ///   - panicPort: of pvpanic; nil when there is none.
    package func addBoardFiles(
        memory: RAMLayout, tables: ACPITables?, bootOrder: [String], panicPort: UInt64?
    ) throws(VMMError) {
        set(FwCfgKey.timerOverride, littleEndianBytes(1 as UInt32))
        try add(try FwCfgFile("etc/e820", E820.forFirmware(memory).flatMap(\.bytes)))
        for file in try tables?.firmwareFiles() ?? [] { try add(file) }
        let order = bootOrder.isEmpty ? [] : Array(bootOrder.joined(separator: "\n").utf8) + [0]
        try add(try FwCfgFile("bootorder", order))
        if let panicPort {
            try add(try FwCfgFile("etc/pvpanic-port", littleEndianBytes(UInt16(truncatingIfNeeded: panicPort))))
        }
        // Milliseconds until a start that has failed is tried again: never.
        try add(try FwCfgFile("etc/boot-fail-wait", littleEndianBytes(UInt32.max)))
    }
}
