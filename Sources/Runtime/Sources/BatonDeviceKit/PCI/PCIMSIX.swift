import BatonBase
import BatonMachine

/// MSI-X: a table of messages and an array of pending bits in BARs (PCI 3.0,
/// 6.8.2).
public final class PCIMSIX {
    unowned let function: PCIFunction
    /// Offset of the capability.
    public let offset: Int
    public let vectors: Int
    /// 16 bytes a vector: address, data, control.
    private(set) var tableBytes: [UInt8]
    /// A bit a vector.
    private(set) var pendingWords: [UInt64]
    /// Told after the guest has switched MSI-X, or the mask of all, on or off.
    public var onControlChange: (() -> Void)?

    private static let enable: UInt16 = 1 << 15
    private static let functionMask: UInt16 = 1 << 14
    private var lastControl: UInt16 = 0

    init(
        function: PCIFunction, vectors: Int, table: (bar: PCIBar, offset: UInt64),
        pending: (bar: PCIBar, offset: UInt64), at offset: Int?
    ) {
        precondition((1...2048).contains(vectors) && table.offset % 8 == 0 && pending.offset % 8 == 0)
        self.function = function
        self.vectors = vectors
        tableBytes = Array(repeating: 0, count: vectors * 16)
        pendingWords = Array(repeating: 0, count: (vectors + 63) / 64)
        let offset = function.config.addCapability(PCICapabilityID.msix, size: 12, at: offset)
        self.offset = offset
        function.config.set(offset + 2, UInt16(vectors - 1))
        function.config.setWritable(offset + 2, PCIMSIX.enable | PCIMSIX.functionMask)
        function.config.set(offset + 4, UInt32(truncatingIfNeeded: table.offset) | UInt32(table.bar.index))
        function.config.set(offset + 8, UInt32(truncatingIfNeeded: pending.offset) | UInt32(pending.bar.index))
        maskAll()
        table.bar.add(registers: Table(self), at: table.offset, size: UInt64(vectors * 16))
        pending.bar.add(registers: Pending(self), at: pending.offset, size: UInt64(pendingWords.count * 8))
    }

    private var control: UInt16 { function.config.value(offset + 2) }
    public var isEnabled: Bool { control & PCIMSIX.enable != 0 }
    /// The mask of all vectors.
    public var isFunctionMasked: Bool { control & PCIMSIX.functionMask != 0 }

    private func word(_ vector: Int, _ index: Int) -> UInt32 {
        let at = vector * 16 + index * 4
        return UInt32(tableBytes[at]) | UInt32(tableBytes[at + 1]) << 8 | UInt32(tableBytes[at + 2]) << 16
            | UInt32(tableBytes[at + 3]) << 24
    }

    /// Whether a vector's messages wait: by its own mask or that of all.
    public func isMasked(_ vector: Int) -> Bool {
        guard vector >= 0, vector < vectors else { return true }
        return isFunctionMasked || word(vector, 3) & 1 != 0
    }

    /// Where a vector's message goes, and what it is.
    public func message(_ vector: Int) -> (address: UInt64, data: UInt32)? {
        guard vector >= 0, vector < vectors else { return nil }
        return (UInt64(word(vector, 0)) & ~3 | UInt64(word(vector, 1)) << 32, word(vector, 2))
    }

    public func isPending(_ vector: Int) -> Bool {
        guard vector >= 0, vector < vectors else { return false }
        return pendingWords[vector / 64] >> UInt64(vector % 64) & 1 != 0
    }

    /// What a vector's event sends at once: nothing while the message is to wait.
    public func directMessage(_ vector: Int) -> (address: UInt64, data: UInt32)? {
        guard isEnabled, !isMasked(vector), !isPending(vector), function.isBusMaster else { return nil }
        return message(vector)
    }

    private func setPending(_ vector: Int, _ level: Bool) {
        let bit = 1 << UInt64(vector % 64) as UInt64
        if level { pendingWords[vector / 64] |= bit } else { pendingWords[vector / 64] &= ~bit }
    }

    /// Sends a vector's message, or keeps it pending while it is masked.
    /// - Returns: false when MSI-X is off or there is no such vector.
    @discardableResult
    public func notify(_ vector: Int) -> Bool {
        guard isEnabled, let (address, data) = message(vector) else { return false }
        if isMasked(vector) {
            setPending(vector, true)
            return true
        }
        return function.sendMessage(address: address, data: data)
    }

    private func fire(_ vector: Int) {
        guard isEnabled, isPending(vector), !isMasked(vector) else { return }
        setPending(vector, false)
        notify(vector)
    }

    func didWriteConfig(_ start: Int, _ end: Int) {
        guard start < offset + 4, end > offset + 2, control != lastControl else { return }
        lastControl = control
        if isEnabled && !isFunctionMasked { for vector in 0..<vectors where isPending(vector) { fire(vector) } }
        onControlChange?()
        function.messagesChanged()
    }

    private func maskAll() { for vector in 0..<vectors { tableBytes[vector * 16 + 12] = 1 } }

    func reset() {
        for index in tableBytes.indices { tableBytes[index] = 0 }
        for index in pendingWords.indices { pendingWords[index] = 0 }
        maskAll()
        lastControl = control
        onControlChange?()
        function.messagesChanged()
    }

    func restore(table: [UInt8], pending: [UInt64]) {
        tableBytes = table
        pendingWords = pending
        lastControl = control
        onControlChange?()
        function.messagesChanged()
    }

    // MARK: Registers

    /// What a driver may do: 4 and 8 aligned bytes.
    private func isAllowed(_ offset: UInt64, _ width: Int) -> Bool {
        if width >= 4, offset % UInt64(width) == 0 { return true }
        Log.guestError("\(function.stateName): access of \(width) bytes at \(Hex(offset)) of the MSI-X table")
        return false
    }

    private final class Table: MMIODevice {
        private unowned let msix: PCIMSIX
        init(_ msix: PCIMSIX) { self.msix = msix }

        func accepts(offset: UInt64, width: Int) -> Bool { msix.isAllowed(offset, width) }

        func mmioRead(offset: UInt64, width: Int) -> UInt64 {
            let at = Int(truncatingIfNeeded: offset)
            let low = UInt64(msix.word(at / 16, at % 16 / 4))
            return width == 8 ? low | UInt64(msix.word(at / 16, at % 16 / 4 + 1)) << 32 : low
        }

        func mmioWrite(offset: UInt64, width: Int, value: UInt64) {
            let at = Int(truncatingIfNeeded: offset)
            let vector = at / 16
            for index in 0..<width {
                let byte = UInt8(truncatingIfNeeded: value >> UInt64(8 * index))
                // Of the control word only the mask can be written.
                let field = at % 16 + index
                if field < 12 {
                    msix.tableBytes[at + index] = byte
                } else if field == 12 {
                    msix.tableBytes[at + index] = byte & 1
                }
            }
            msix.fire(vector)
            msix.function.messagesChanged()
        }
    }

    private final class Pending: MMIODevice {
        private unowned let msix: PCIMSIX
        init(_ msix: PCIMSIX) { self.msix = msix }

        func accepts(offset: UInt64, width: Int) -> Bool { msix.isAllowed(offset, width) }

        func mmioRead(offset: UInt64, width: Int) -> UInt64 {
            msix.function.collectEvents()
            let word = msix.pendingWords[Int(truncatingIfNeeded: offset / 8)]
            return width == 8 ? word : word >> (offset % 8 * 8) & 0xffff_ffff
        }

        func mmioWrite(offset: UInt64, width: Int, value: UInt64) {
            Log.guestError("\(msix.function.stateName): write of the MSI-X pending bits")
        }
    }
}
