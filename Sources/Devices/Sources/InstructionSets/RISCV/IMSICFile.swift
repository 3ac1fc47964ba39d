/// One interrupt file of an incoming MSI controller (RISC-V AIA 1.0, 3): an
/// array of pending and enable bits, one a message.
public final class IMSICFile {
    /// Identities 1 to this.
    public static let identities = 255
    private static let words = 4

    /// Told of every change of what the file signals to its hart.
    private let output: (Bool) -> Void
    public private(set) var level = false
    /// A bit an identity; identity 0 does not exist.
    public private(set) var pending = [UInt64](repeating: 0, count: words)
    public private(set) var enabled = [UInt64](repeating: 0, count: words)
    public private(set) var delivers = false
    /// Identities from here on are not signalled; 0 for no limit.
    public private(set) var threshold: UInt64 = 0

    public init(_ output: @escaping (Bool) -> Void) { self.output = output }

    /// Takes a message. Identities that do not exist are ignored.
    public func receive(_ identity: UInt64) {
        guard identity > 0, identity <= UInt64(IMSICFile.identities) else { return }
        pending[Int(identity / 64)] |= 1 << (identity % 64)
        update()
    }

    /// The most urgent identity that is pending, enabled and below the
    /// threshold: the least; 0 for none.
    public var top: UInt64 {
        for word in 0..<IMSICFile.words {
            let bits = pending[word] & enabled[word]
            guard bits != 0 else { continue }
            let identity = UInt64(word * 64 + bits.trailingZeroBitCount)
            return threshold == 0 || identity < threshold ? identity : 0
        }
        return 0
    }

    /// The message of `top` is being handled.
    public func claim() {
        let identity = top
        guard identity != 0 else { return }
        pending[Int(identity / 64)] &= ~(1 << (identity % 64))
        update()
    }

    private func update() {
        let new = delivers && top != 0
        guard new != level else { return }
        level = new
        output(new)
    }

    public func reset() {
        for word in 0..<IMSICFile.words {
            pending[word] = 0
            enabled[word] = 0
        }
        delivers = false
        threshold = 0
        update()
    }

    /// Takes over a checked state.
    /// - Parameters:
    ///   - pending, enabled: four words, without bit 0 of the first.
    ///   - threshold: up to 255.
    public func restore(pending: [UInt64], enabled: [UInt64], delivers: Bool, threshold: UInt64) {
        precondition(pending.count == IMSICFile.words && enabled.count == IMSICFile.words)
        self.pending = pending
        self.enabled = enabled
        self.delivers = delivers
        self.threshold = threshold
        level = delivers && top != 0
        // Whatever the hart has loaded, it agrees with this.
        output(level)
    }

    // MARK: Registers, by their select numbers (AIA 1.0, 3.8)

    private enum Register {
        static let delivery: UInt64 = 0x70
        static let threshold: UInt64 = 0x72
        static let pending: ClosedRange<UInt64> = 0x80...0xbf
        static let enabled: ClosedRange<UInt64> = 0xc0...0xff
    }

    /// - Returns: nil when there is no such register.
    public func read(_ select: UInt64) -> UInt64? {
        switch select {
        case Register.delivery: return delivers ? 1 : 0
        case Register.threshold: return threshold
        case Register.pending, Register.enabled:
            // With 64-bit registers the odd numbers do not exist.
            guard select % 2 == 0 else { return nil }
            let word = Int(select & 0x3f) / 2
            guard word < IMSICFile.words else { return 0 }
            return Register.pending.contains(select) ? pending[word] : enabled[word]
        default: return nil
        }
    }

    /// - Returns: false when there is no such register.
    public func write(_ select: UInt64, _ value: UInt64) -> Bool {
        switch select {
        case Register.delivery: delivers = value & 1 != 0
        case Register.threshold: threshold = value & UInt64(IMSICFile.identities)
        case Register.pending, Register.enabled:
            guard select % 2 == 0 else { return false }
            let word = Int(select & 0x3f) / 2
            guard word < IMSICFile.words else { return true }
            let bits = word == 0 ? value & ~1 : value
            if Register.pending.contains(select) { pending[word] = bits } else { enabled[word] = bits }
        default: return false
        }
        update()
        return true
    }
}
