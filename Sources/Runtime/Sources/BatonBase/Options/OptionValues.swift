/// Typed access. Each accessor takes the key; a key that was not given is nil
/// (or `Parameter 'KEY' is missing` with `required…`), a value of another type
/// is refused in QEMU's words.
extension KeyValueOptions {
    private func take(_ key: String) -> Value? {
        var value: Value?
        for index in entries.indices where entries[index].key == key {
            entries[index].taken = true
            value = entries[index].value
        }
        return value
    }

    private static func missing(_ key: String) -> VMMError { VMMError("Parameter '\(key)' is missing") }
    private static func wrongType(_ key: String, _ expected: String) -> VMMError {
        VMMError("Invalid parameter type for '\(key)', expected: \(expected)")
    }

    public func string(_ key: String) throws(VMMError) -> String? {
        switch take(key) {
        case nil: return nil
        case .text(let text): return text
        case .json(.string(let text)): return text
        case .json: throw Self.wrongType(key, "string")
        }
    }

    public func requiredString(_ key: String) throws(VMMError) -> String {
        guard let value = try string(key) else { throw Self.missing(key) }
        return value
    }

    /// Every value of a key that may be repeated, in order.
    public func strings(_ key: String) throws(VMMError) -> [String] {
        var values: [String] = []
        for index in entries.indices where entries[index].key == key {
            entries[index].taken = true
            switch entries[index].value {
            case .text(let text), .json(.string(let text)): values.append(text)
            case .json: throw Self.wrongType(key, "string")
            }
        }
        return values
    }

    /// `on`, `off`, `yes`, `no`, `true`, `false`, `y`, `n`.
    public func bool(_ key: String) throws(VMMError) -> Bool? {
        switch take(key) {
        case nil: return nil
        case .json(.bool(let value)): return value
        case .json: throw Self.wrongType(key, "boolean")
        case .text(let text):
            switch text {
            case "on", "yes", "true", "y": return true
            case "off", "no", "false", "n": return false
            default: throw VMMError("Parameter '\(key)' expects 'on' or 'off'")
            }
        }
    }

    /// `on`, `off` or `auto` (nil when `auto` or not given).
    public func onOffAuto(_ key: String) throws(VMMError) -> Bool? {
        guard let text = try enumeration(key, ["auto", "on", "off"]) else { return nil }
        return text == "auto" ? nil : text == "on"
    }

    /// An unsigned number, decimal or hexadecimal with `0x`.
    public func number(_ key: String, in range: ClosedRange<UInt64> = 0...UInt64.max) throws(VMMError) -> UInt64? {
        let value: UInt64
        switch take(key) {
        case nil: return nil
        case .json(.int(let given)):
            guard let exact = UInt64(exactly: given) else { throw VMMError("Parameter '\(key)' expects a number") }
            value = exact
        case .json(.uint(let given)): value = given
        case .json: throw Self.wrongType(key, "integer")
        case .text(let text):
            guard let parsed = SizeText.unsignedNumber(text) else {
                throw VMMError("Parameter '\(key)' expects a number")
            }
            value = parsed
        }
        guard range.contains(value) else {
            throw VMMError(
                "Parameter '\(key)' expects a number from \(range.lowerBound) to \(range.upperBound), not \(value)")
        }
        return value
    }

    /// A size in bytes: `512M`, `1.5G`, `0x1000`.
    /// - Parameter defaultUnit: bytes that a number without a unit counts; `-m` takes MiB.
    public func size(_ key: String, defaultUnit: UInt64 = 1) throws(VMMError) -> UInt64? {
        switch take(key) {
        case nil: return nil
        case .json(.int(let given)):
            guard let exact = UInt64(exactly: given) else { throw Self.notASize(key) }
            return exact
        case .json(.uint(let given)): return given
        case .json: throw Self.wrongType(key, "integer")
        case .text(let text):
            do {
                return try SizeText.parse(text, defaultUnit: defaultUnit)
            } catch .outOfRange {
                throw VMMError("Value '\(text)' is out of range for parameter '\(key)'")
            } catch {
                throw Self.notASize(key)
            }
        }
    }

    public func requiredSize(_ key: String, defaultUnit: UInt64 = 1) throws(VMMError) -> UInt64 {
        guard let value = try size(key, defaultUnit: defaultUnit) else { throw Self.missing(key) }
        return value
    }

    private static func notASize(_ key: String) -> VMMError {
        VMMError(
            "Parameter '\(key)' expects a non-negative number below 2^64",
            hint: "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n"
                + "and exabytes, respectively.")
    }

    /// One of a set of words.
    public func enumeration(_ key: String, _ values: [String]) throws(VMMError) -> String? {
        guard let text = try string(key) else { return nil }
        guard values.contains(text) else {
            throw VMMError("Parameter '\(key)' does not accept value '\(text)'")
        }
        return text
    }

    /// The raw value of one case of a string enumeration.
    public func enumeration<T: RawRepresentable & CaseIterable>(_ key: String, _ type: T.Type) throws(VMMError) -> T?
    where T.RawValue == String {
        guard let text = try string(key) else { return nil }
        guard let value = T(rawValue: text) else {
            throw VMMError("Parameter '\(key)' does not accept value '\(text)'")
        }
        return value
    }

    /// An `id=`: a letter, then letters, digits, `-`, `.` and `_`.
    public func identifier(_ key: String = "id") throws(VMMError) -> String? {
        guard let text = try string(key) else { return nil }
        guard Self.isIdentifier(text) else {
            throw VMMError(
                "Parameter '\(key)' expects an identifier",
                hint: "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter.")
        }
        return text
    }

    public func requiredIdentifier(_ key: String = "id") throws(VMMError) -> String {
        guard let value = try identifier(key) else { throw Self.missing(key) }
        return value
    }

    /// Whether a name may be an `id=`.
    public static func isIdentifier(_ text: String) -> Bool {
        func isLetter(_ byte: UInt8) -> Bool { (UInt8(ascii: "a")...UInt8(ascii: "z")).contains(byte | 0x20) }
        guard let first = text.utf8.first, isLetter(first) else { return false }
        return text.utf8.allSatisfy { byte in
            isLetter(byte) || (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte)
                || byte == UInt8(ascii: "-") || byte == UInt8(ascii: ".") || byte == UInt8(ascii: "_")
        }
    }
}
