import BatonBase
import BatonMachine

/// A function's part of a checkpoint.
extension PCIFunction {
    public func save(to writer: inout StateWriter) {
        writer.put("config", bytes: config.bytes)
        writer.put("intx", interruptLevel)
        if let msi { writer.put("msi-pending", UInt64(msi.pendingBits)) }
        if let msix {
            writer.put("msix-table", bytes: msix.tableBytes)
            writer.put("msix-pending", msix.pendingWords)
        }
        saveFunction(to: &writer)
    }

    public func loader(of reader: StateReader) throws(VMMError) -> () -> Void {
        let bytes = try reader.bytes("config", count: config.size...config.size)
        if let offset = config.firstMismatch(bytes) {
            throw VMMError(
                "Bad config data: i=\(Hex(offset)) read: \(Hex(UInt64(bytes[offset]))) "
                    + "device: \(Hex(UInt64(config.bytes[offset]))) in section '\(reader.section)'",
                hint: "The device was saved with other properties, or is another device.")
        }
        let level = try reader.bool("intx")
        guard !level || pin > 0 else { throw VMMError("field 'intx' of section '\(reader.section)' is out of range") }
        let msiPending = try msi.map { _ throws(VMMError) in try reader.uint32("msi-pending") }
        var table: [UInt8] = []
        var pending: [UInt64] = []
        if let msix {
            table = try reader.bytes("msix-table", count: msix.tableBytes.count...msix.tableBytes.count)
            pending = try reader.array("msix-pending", count: msix.pendingWords.count...msix.pendingWords.count)
        }
        let apply = try loadFunction(from: reader)
        try reader.finish()

        return { [self] in
            let levelBefore = drivenLevel
            config.restore(bytes)
            restoreInterrupt(level)
            if let msi, let msiPending { msi.restore(pending: msiPending) }
            msix?.restore(table: table, pending: pending)
            apply()
            bus?.host?.mappingsChanged(self)
            if drivenLevel != levelBefore { bus?.host?.interruptChanged(self) }
        }
    }
}
