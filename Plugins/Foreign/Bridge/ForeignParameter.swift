import BatonRuntime

/// An argument or result of a foreign module's command.
struct ForeignParameter {
    let name: String
    let item: Signature.Item
    /// For integers: what is allowed, as bits of the parameter's own type.
    private let minimum: Int64
    private let maximum: Int64
    private var hasRange: Bool { minimum != 0 || maximum != 0 }

    init(name: String, item: Signature.Item, minimum: Int64, maximum: Int64) throws(VMMError) {
        self.name = name
        self.item = item
        self.minimum = minimum
        self.maximum = maximum
        guard hasRange else { return }
        switch item.letter {
        case .int32, .uint32, .int64, .uint64:
            guard minimum <= maximum, item.letter == .int32 || item.letter == .int64 || minimum >= 0 else {
                throw VMMError("the range of '\(name)' is empty: \(minimum) to \(maximum)")
            }
        default: throw VMMError("'\(name)' has a range, which is for integers only")
        }
    }

    /// As `query-qmp-schema` describes it.
    var member: QMPMember {
        let type: QMPType =
            switch item.letter {
            case .bool: .bool
            case .int32, .uint32, .int64: .int
            case .uint64: .uint
            case .double: .number
            case .string, .descriptor, .bytes, .host, .nothing: .string
            }
        return QMPMember(name, type, optional: item.isOptional)
    }

    /// The argument as its declared integer type has it.
    /// - Throws: QEMU's error when it is outside of the type or the range.
    func integer(_ value: JSON) throws(VMMError) -> ForeignFunction.Value {
        func outOfType(_ type: String) -> VMMError { VMMError("Parameter '\(name)' expects \(type)") }
        switch (item.letter, value) {
        case (.int32, .int(let given)):
            guard let exact = Int32(exactly: given) else { throw outOfType("int32_t") }
            try check(given)
            return .int32(exact)
        case (.uint32, .int(let given)):
            guard let exact = UInt32(exactly: given) else { throw outOfType("uint32_t") }
            try check(given)
            return .uint32(exact)
        case (.int64, .int(let given)):
            try check(given)
            return .int64(given)
        case (.uint64, .int(let given)):
            guard let exact = UInt64(exactly: given) else { throw outOfType("uint64_t") }
            try check(given)
            return .uint64(exact)
        case (.uint64, .uint(let given)):
            // Above Int64.max, and so above every range.
            if hasRange { throw outOfRange }
            return .uint64(given)
        default: throw VMMError("Invalid parameter type for '\(name)', expected: integer")
        }
    }

    private func check(_ value: Int64) throws(VMMError) {
        if hasRange, !(minimum...maximum).contains(value) { throw outOfRange }
    }

    private var outOfRange: VMMError {
        VMMError("Parameter '\(name)' expects an integer in the range of \(minimum) to \(maximum)")
    }
}
