/// Message signalled interrupts with 64-bit addresses and a mask a vector
/// (PCI 3.0, 6.8.1).
public final class PCIMSI {
    unowned let function: PCIFunction
    /// Offset of the capability.
    public let offset: Int
    /// The most that the guest may enable.
    public let vectors: Int
    private(set) var pendingBits: UInt32 = 0
    /// Told after the guest has changed control, address, data or masks.
    public var onChange: (() -> Void)?

    private static let enable: UInt16 = 1
    private var control: Int { offset + 2 }
    private var mask: Int { offset + 16 }
    private var pending: Int { offset + 20 }

    init(function: PCIFunction, vectors: Int, at offset: Int?) {
        precondition(vectors >= 1 && vectors <= 32 && vectors & (vectors - 1) == 0)
        self.function = function
        self.vectors = vectors
        let offset = function.config.addCapability(PCICapabilityID.msi, size: 24, at: offset)
        self.offset = offset
        // 64-bit addresses, masks, and the logarithm of the number of vectors.
        function.config.set(offset + 2, UInt16(1 << 8 | 1 << 7 | vectors.trailingZeroBitCount << 1))
        function.config.setWritable(offset + 2, PCIMSI.enable | 7 << 4)
        function.config.setWritable(offset + 4, 0xffff_fffc as UInt32)
        function.config.setWritable(offset + 8, 0xffff_ffff as UInt32)
        function.config.setWritable(offset + 12, 0xffff as UInt16)
        let all = vectors == 32 ? UInt32.max : (1 << UInt32(vectors)) - 1
        function.config.setWritable(offset + 16, all)
        function.config.setOwned(offset + 20, all)
    }

    public var isEnabled: Bool { function.config.value(control, as: UInt16.self) & PCIMSI.enable != 0 }

    /// How many vectors the guest has given to the device.
    public var enabledVectors: Int {
        let exponent = Int(function.config.value(control, as: UInt16.self) >> 4 & 7)
        return min(1 << min(exponent, 5), vectors)
    }

    public func isMasked(_ vector: Int) -> Bool {
        function.config.value(mask, as: UInt32.self) >> UInt32(truncatingIfNeeded: vector & 31) & 1 != 0
    }

    /// Where a vector's message goes, and what it is.
    public func message(_ vector: Int) -> (address: UInt64, data: UInt32) {
        let config = function.config
        let address =
            UInt64(config.value(offset + 4, as: UInt32.self)) | UInt64(config.value(offset + 8, as: UInt32.self)) << 32
        let low = UInt32(enabledVectors - 1)
        let data = UInt32(config.value(offset + 12, as: UInt16.self)) & ~low | UInt32(truncatingIfNeeded: vector) & low
        return (address, data)
    }

    /// What a vector's event sends at once: nothing while the message is to wait.
    public func directMessage(_ vector: Int) -> (address: UInt64, data: UInt32)? {
        guard isEnabled, vector >= 0, vector < enabledVectors, !isMasked(vector), function.isBusMaster else {
            return nil
        }
        return message(vector)
    }

    /// Sends a vector's message, or keeps it pending while it is masked.
    /// - Returns: false when MSI is off or there is no such vector.
    @discardableResult
    public func notify(_ vector: Int) -> Bool {
        guard isEnabled, vector >= 0, vector < enabledVectors else { return false }
        if isMasked(vector) {
            setPending(pendingBits | 1 << UInt32(vector))
            return true
        }
        let (address, data) = message(vector)
        return function.sendMessage(address: address, data: data)
    }

    /// Whether an access of the configuration space sees pending bits.
    func hasPending(_ start: Int, _ width: Int) -> Bool {
        isEnabled && start < pending + 4 && start + width > pending
    }

    private func setPending(_ bits: UInt32) {
        pendingBits = bits
        function.config.update(pending, bits)
    }

    func didWriteConfig(_ start: Int, _ end: Int) {
        guard start < offset + 24, end > offset else { return }
        if isEnabled {
            for vector in 0..<enabledVectors where pendingBits >> UInt32(vector) & 1 != 0 && !isMasked(vector) {
                setPending(pendingBits & ~(1 << UInt32(vector)))
                notify(vector)
            }
        }
        onChange?()
        function.messagesChanged()
    }

    func reset() {
        pendingBits = 0
        onChange?()
        function.messagesChanged()
    }

    func restore(pending bits: UInt32) {
        setPending(bits)
        onChange?()
        function.messagesChanged()
    }
}
