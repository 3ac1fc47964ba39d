/// The SBI's firmware features (FWFT): what each hart has set, and what of it is
/// locked until its next reset.
final class FirmwareFeatures {
    /// A hart's part; a bit each, by the feature's number.
    struct Setting: Equatable {
        var values: UInt64 = 0
        var locked: UInt64 = 0
        /// Bits that may be set.
        static let mask: UInt64 = 1 << Feature.misalignedDelegation.rawValue
    }

    private(set) var settings: [Setting]

    init(hartCount: Int) { settings = Array(repeating: Setting(), count: hartCount) }

    func reset(hart: Int) { settings[hart] = Setting() }

    func restore(_ setting: Setting, hart: Int) { settings[hart] = setting }

    /// Features of the specification. Of these the harts have one: landing
    /// pads, shadow stacks, double traps and pointer masking are extensions
    /// that they lack, and whether they update A and D is fixed: with Svade
    /// they do not, and without it always.
    private enum Feature: UInt64 {
        /// Misaligned loads and stores do not trap, and what traps (misaligned
        /// atomics) goes to S-mode whatever is set, as there is no firmware to
        /// emulate it.
        case misalignedDelegation = 0
        case landingPad, shadowStack, doubleTrap, hardwareUpdate, pointerMasking
    }

    func call(_ hart: Int, _ function: UInt64, _ feature: UInt64, _ value: UInt64, _ flags: UInt64)
        -> BuiltinSBI.Answer
    {
        guard function <= 1 else { return .failure(.notSupported) }
        // Reserved, or a platform's that this is not.
        guard let feature = Feature(rawValue: feature & 0xffff_ffff) else { return .failure(.denied) }
        guard feature == .misalignedDelegation else { return .failure(.notSupported) }
        let bit = 1 << feature.rawValue as UInt64
        if function == 1 { return .value(settings[hart].values & bit != 0 ? 1 : 0) }
        guard value <= 1, flags <= 1 else { return .failure(.invalidParameter) }
        guard settings[hart].locked & bit == 0 else { return .failure(.deniedLocked) }
        settings[hart].values = settings[hart].values & ~bit | (value == 1 ? bit : 0)
        if flags == 1 { settings[hart].locked |= bit }
        return .success
    }
}
