import BatonRuntime
import CBaton
import CForeign

/// A function of a foreign module, which can be called.
struct ForeignFunction {
    let module: ForeignModule
    /// The method or command, for error texts.
    let name: String
    let function: baton_function
    let signature: Signature

    /// An argument as the C side gets it.
    enum Value {
        case bool(Bool)
        case int32(Int32)
        case uint32(UInt32)
        case int64(Int64)
        case uint64(UInt64)
        case double(Double)
        /// Valid until the call has returned.
        case pointer(UnsafeRawPointer?)
        case size(Int)

        var letter: UInt8 {
            switch self {
            case .bool: UInt8(ascii: "b")
            case .int32: UInt8(ascii: "i")
            case .uint32: UInt8(ascii: "I")
            case .int64: UInt8(ascii: "l")
            case .uint64: UInt8(ascii: "L")
            case .double: UInt8(ascii: "d")
            case .pointer: UInt8(ascii: "p")
            case .size: UInt8(ascii: "z")
            }
        }

        var raw: foreign_value {
            var value = foreign_value(L: 0)
            switch self {
            case .bool(let given): value.b = given ? 1 : 0
            case .int32(let given): value.i = given
            case .uint32(let given): value.I = given
            case .int64(let given): value.l = given
            case .uint64(let given): value.L = given
            case .double(let given): value.d = given
            case .pointer(let given): value.p = given
            case .size(let given): value.z = given
            }
            return value
        }
    }

    /// A text for the callee.
    func text(_ text: String) -> Value { .pointer(module.lend(text).map { UnsafeRawPointer($0) }) }

    /// Calls the function, with the module's handle first.
    /// - Parameter read: reads what the function returned, while what was lent
    ///   to it is still there.
    /// - Returns: what `read` made of it, and the text that `baton_fail` was given.
    /// - Throws: why nothing was called.
    func call<T>(
        _ arguments: [Value], _ read: (foreign_value) -> T
    ) throws(VMMError) -> (value: T, failure: VMMError?) {
        guard !module.isLeft else {
            _ = module.callEnded()
            throw VMMError(
                "\(module.name): '\(name)' is not called, as a call of the module did not come back",
                hint: "Shut the VM down, and start it again when that suits.")
        }
        let all = [Value.pointer(UnsafeRawPointer(module.handle))] + arguments
        var raw = all.map(\.raw)
        let letters = all.map { CChar(bitPattern: $0.letter) }
        var returned = foreign_value(L: 0)
        let result: UInt8
        switch signature.result {
        case .string: result = UInt8(ascii: "p")
        case .descriptor: result = UInt8(ascii: "i")
        case let other: result = other.rawValue
        }
        let status = foreign_call(function, CChar(bitPattern: result), letters, letters.count, &raw, &returned)
        let value = read(returned)
        let failure = module.callEnded()
        guard status == 0 else { throw VMMError("\(module.name): '\(name)' cannot be called") }
        return (value, failure)
    }

    /// The error for a call that failed, without the module's name.
    func plainError(_ failure: VMMError?, _ status: Int32) -> VMMError {
        failure ?? VMMError("\(name) failed with status \(status)")
    }

    /// The error for a call that failed.
    func error(_ failure: VMMError?, _ status: Int32) -> VMMError { plainError(failure, status).prefixed(module.name) }

    /// Calls a function that returns `v` or `i`.
    /// - Parameter named: whether the module's name goes before its words.
    /// - Throws: for `i`, the failure in the module's words.
    func callChecked(_ arguments: [Value] = [], named: Bool = true) throws(VMMError) {
        let (status, failure) = try call(arguments) { $0.i }
        guard signature.result == .int32, status != 0 else { return }
        throw named ? error(failure, status) : plainError(failure, status)
    }

    /// Calls a function that returns `f`, a descriptor.
    func callForDescriptor(_ arguments: [Value]) throws(VMMError) -> OwnedFD {
        let (raw, failure) = try call(arguments) { $0.i }
        guard raw >= 0 else { throw error(failure, raw) }
        guard raw > 2, FD.isOpen(raw) else {
            throw VMMError("\(module.name): '\(name)' returned \(raw), which is not a descriptor of its own")
        }
        let fd = OwnedFD(adopting: raw)
        try FD.setCloseOnExec(fd.raw, true)
        return fd
    }

    /// Calls a function that returns `s`.
    func callForText() -> String? {
        (try? call([]) { $0.p.map { String(cString: $0.assumingMemoryBound(to: CChar.self)) } })?.value
    }
}
