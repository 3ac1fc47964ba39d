import BatonRuntime
import CBaton

/// The methods of a foreign module, checked against what its kind may have.
struct MethodTable {
    /// A method that the runtime knows how to call.
    struct Known {
        var signature: String
        var isMandatory = false
    }

    static let common = ["init": Known(signature: "i(h)")]
    static let byKind: [String: [String: Known]] = [
        "preserver": [
            "promises": Known(signature: "I(h)"), "check": Known(signature: "i(hsI)"),
            "save": Known(signature: "i(h)", isMandatory: true), "survey": Known(signature: "i(h)"),
            "exec": Known(signature: "i(h)"), "save-failed": Known(signature: "v(h)"),
            "load": Known(signature: "i(h)", isMandatory: true), "load-failed": Known(signature: "v(h)"),
            "commit": Known(signature: "v(h)"), "ready": Known(signature: "v(hiI)"),
        ],
        "mode": [
            "promises": Known(signature: "I(h)", isMandatory: true), "summary": Known(signature: "s(h)"),
            "check": Known(signature: "i(h)"), "volatile": Known(signature: "b(hI)"),
            "save": Known(signature: "i(h)"), "load": Known(signature: "i(h)"), "exec": Known(signature: "i(h)"),
            "prepare": Known(signature: "i(h)"), "keep": Known(signature: "i(hii)"),
            "let-go": Known(signature: "v(h)"), "find": Known(signature: "i(h)"), "finish": Known(signature: "i(h)"),
            "connect": Known(signature: "i(hsl)"), "receive": Known(signature: "f(hs)"),
        ],
        "memory-backend": [
            "summary": Known(signature: "s(h)"), "check": Known(signature: "i(hsL)"),
            "make": Known(signature: "f(hsL)", isMandatory: true),
        ],
    ]
    private static let limit = 1024

    private var functions: [String: ForeignFunction] = [:]

    init(_ descriptor: baton_module_descriptor, kind: String, module: ForeignModule) throws(VMMError) {
        guard let ofKind = MethodTable.byKind[kind] else {
            let kinds = MethodTable.byKind.keys.sorted().joined(separator: ", ")
            throw VMMError("a foreign module cannot be of the kind '\(kind)'", hint: "It can be one of \(kinds).")
        }
        let known = MethodTable.common.merging(ofKind) { first, _ in first }
        guard descriptor.method_count <= MethodTable.limit else {
            throw VMMError("the table of methods has \(descriptor.method_count) entries")
        }
        var names: Set<String> = []
        for index in 0..<Int(descriptor.method_count) {
            guard let method = descriptor.methods?[index], let name = method.name.map({ String(cString: $0) }) else {
                throw VMMError("method \(index) has no name")
            }
            guard names.insert(name).inserted else { throw VMMError("the method '\(name)' is there twice") }
            guard let function = method.function else { throw VMMError("the method '\(name)' has no function") }
            guard let expected = known[name] else {
                // For a later runtime, unless the module says that it needs it.
                guard descriptor.capabilities & UInt64(BATON_NEEDS_ALL_METHODS) == 0 else {
                    throw VMMError(
                        "the method '\(name)' is unknown to this Baton, and the module needs it",
                        hint: "Methods of a \(kind): \(known.keys.sorted().joined(separator: ", ")).")
                }
                Log.trace("module_method_ignored", "\(module.name) \(name)")
                continue
            }
            let text = method.signature.map { String(cString: $0) } ?? ""
            let signature: Signature
            do throws(VMMError) {
                signature = try Signature(parsing: text)
            } catch {
                throw error.prefixed("method '\(name)'")
            }
            guard text == expected.signature else {
                throw VMMError("the method '\(name)' has the signature '\(text)', not '\(expected.signature)'")
            }
            functions[name] = ForeignFunction(module: module, name: name, function: function, signature: signature)
        }
        for (name, method) in known.sorted(by: { $0.key < $1.key }) where method.isMandatory && functions[name] == nil {
            throw VMMError("the method '\(name)' is missing, which a \(kind) must have")
        }
    }

    subscript(_ name: String) -> ForeignFunction? { functions[name] }

    /// The bits that the module promises; none when it has no method for that.
    /// - Parameter known: those that this Baton knows.
    func promises(of kind: String, known: UInt32) throws(VMMError) -> UInt32 {
        let bits = try self["promises"]?.call([]) { $0.I }.value ?? 0
        guard bits & ~known == 0 else {
            throw VMMError("the \(kind) promises what is unknown to this Baton (\(Hex(UInt64(bits & ~known))))")
        }
        return bits
    }

    /// Calls a method that the module may lack.
    /// - Parameter named: whether the module's name goes before its words.
    func call(
        _ name: String, named: Bool = true, _ arguments: (ForeignFunction) -> [ForeignFunction.Value] = { _ in [] }
    ) throws(VMMError) {
        if let function = functions[name] { try function.callChecked(arguments(function), named: named) }
    }
}
