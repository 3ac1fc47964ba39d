import BatonBase

/// Checks values against their declared types, with the error texts of QEMU's
/// QAPI visitor.
public enum QMPArguments {
    /// - Parameter takesMore: whether there may be members that are not listed.
    /// - Throws: what is missing, unexpected or of the wrong type.
    public static func check(
        _ arguments: JSONObject, against members: [QMPMember], takesMore: Bool = false
    ) throws(VMMError) {
        try check(arguments, against: members, path: "", takesMore: takesMore)
    }

    private static func check(
        _ object: JSONObject, against members: [QMPMember], path: String, takesMore: Bool = false
    ) throws(VMMError) {
        for member in members {
            let name = path.isEmpty ? member.name : "\(path).\(member.name)"
            guard let value = object[member.name] else {
                guard member.optional else { throw VMMError("Parameter '\(name)' is missing") }
                continue
            }
            try check(value, is: member.type, path: name)
        }
        guard !takesMore else { return }
        // Each name occurs once, so equal counts mean that there are no others.
        for (key, _) in object.members where !members.contains(where: { $0.name == key }) {
            throw VMMError("Parameter '\(path.isEmpty ? key : "\(path).\(key)")' is unexpected")
        }
    }

    private static func check(_ value: JSON, is type: QMPType, path: String) throws(VMMError) {
        switch (type, value) {
        case (.any, _), (.bool, .bool), (.int, .int), (.uint, .int), (.uint, .uint), (.number, .int), (.number, .uint),
            (.number, .double), (.string, .string), (.null, .null):
            return
        case (.enumeration(_, let values), .string(let text)):
            guard values.contains(text) else {
                throw VMMError("Parameter '\(path)' does not accept value '\(text)'")
            }
        case (.array(let element), .array(let elements)):
            for (index, value) in elements.enumerated() { try check(value, is: element, path: "\(path)[\(index)]") }
        case (.object(_, let members), .object(let object)):
            try check(object, against: members, path: path)
        default:
            throw VMMError("Invalid parameter type for '\(path)', expected: \(name(of: type))")
        }
    }

    private static func name(of type: QMPType) -> String {
        switch type {
        case .bool: "boolean"
        case .int, .uint: "integer"
        case .number: "number"
        case .string, .enumeration: "string"
        case .array: "array"
        case .object: "object"
        case .null: "null"
        case .any: "any"
        }
    }
}
