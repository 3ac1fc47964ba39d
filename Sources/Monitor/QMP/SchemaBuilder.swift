import BatonRuntime

/// Makes the answer to `query-qmp-schema` from what is registered: an array of
/// SchemaInfo. Type names are numbers, as in QEMU, since they are no interface.
struct SchemaBuilder {
    private var entries: [JSON] = []
    /// The name given to each type, by its structure.
    private var names: [String: String] = [:]

    static func schema(of commands: CommandRegistry) -> JSON {
        var builder = SchemaBuilder()
        var described: [JSON] = []
        func order(_ names: some Sequence<String>) -> [String] { names.sorted() }
        let negotiation = QMPCommand(
            "qmp_capabilities", arguments: QMPDispatcher.capabilitiesArguments, handler: { _ in [:] })
        for name in order(Array(commands.qmp.keys) + [negotiation.name]) {
            guard let command = commands.qmp[name] ?? (name == negotiation.name ? negotiation : nil) else { continue }
            described.append([
                "name": .string(name), "meta-type": "command", "allow-oob": false,
                "arg-type": .string(builder.name(of: .object(name: "\(name)-arg", members: command.arguments))),
                "ret-type": .string(builder.name(of: command.returns)),
            ])
        }
        for name in order(commands.events.keys) {
            guard let data = commands.events[name] else { continue }
            described.append([
                "name": .string(name), "meta-type": "event", "arg-type": .string(builder.name(of: data)),
            ])
        }
        return .array(described + builder.entries)
    }

    private mutating func name(of type: QMPType) -> String {
        switch type {
        case .bool: return builtin("bool", "boolean")
        case .int, .uint: return builtin("int", "int")
        case .number: return builtin("number", "number")
        case .string: return builtin("str", "string")
        case .any: return builtin("any", "value")
        case .null: return builtin("null", "null")
        case .enumeration(_, let values):
            let strings = JSON.array(values.map { .string($0) })
            return entry("enum " + strings.text()) { name in
                [
                    "name": .string(name), "meta-type": "enum", "values": strings,
                    "members": .array(values.map { ["name": .string($0)] }),
                ]
            }
        case .array(let element):
            let elementName = self.name(of: element)
            let name = "[\(elementName)]"
            if names.updateValue(name, forKey: name) == nil {
                entries.append([
                    "name": .string(name), "meta-type": "array", "element-type": .string(elementName),
                ])
            }
            return name
        case .object(_, let members):
            let list = JSON.array(
                members.map { member in
                    var described: JSONObject = [
                        "name": .string(member.name), "type": .string(self.name(of: member.type)),
                    ]
                    // The default is unknown to the schema, but that there is one is not.
                    if member.optional { described["default"] = .null }
                    return .object(described)
                })
            return entry("object " + list.text()) { name in
                ["name": .string(name), "meta-type": "object", "members": list]
            }
        }
    }

    private mutating func builtin(_ name: String, _ jsonType: String) -> String {
        if names.updateValue(name, forKey: name) == nil {
            entries.append(["name": .string(name), "meta-type": "builtin", "json-type": .string(jsonType)])
        }
        return name
    }

    private mutating func entry(_ key: String, _ make: (String) -> JSON) -> String {
        if let name = names[key] { return name }
        let name = String(names.count)
        names[key] = name
        entries.append(make(name))
        return name
    }
}
