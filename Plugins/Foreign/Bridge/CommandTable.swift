import BatonRuntime
import CBaton

/// The QMP commands and events of a foreign module, checked.
struct CommandTable {
    private(set) var commands: [QMPCommand] = []
    private(set) var events: [(name: String, members: [QMPMember])] = []
    private static let limit = 1024
    /// A call has room for 64 values; an argument takes up to three.
    private static let valuesLimit = 20

    init(_ descriptor: baton_module_descriptor, module: ForeignModule) throws(VMMError) {
        guard descriptor.command_count <= CommandTable.limit, descriptor.event_count <= CommandTable.limit else {
            throw VMMError("the table of commands or events has more than \(CommandTable.limit) entries")
        }
        for index in 0..<Int(descriptor.command_count) {
            guard let entry = descriptor.commands?[index], let name = entry.name.map({ String(cString: $0) }) else {
                throw VMMError("command \(index) has no name")
            }
            do throws(VMMError) {
                commands.append(try CommandTable.command(entry, name, module))
            } catch {
                throw error.prefixed("command '\(name)'")
            }
        }
        for index in 0..<Int(descriptor.event_count) {
            guard let entry = descriptor.events?[index], let name = entry.name.map({ String(cString: $0) }) else {
                throw VMMError("event \(index) has no name")
            }
            do throws(VMMError) {
                events.append((name, try CommandTable.event(entry, name)))
            } catch {
                throw error.prefixed("event '\(name)'")
            }
        }
    }

    private static func command(
        _ entry: baton_command, _ name: String, _ module: ForeignModule
    ) throws(VMMError) -> QMPCommand {
        func isAllowed(_ byte: UInt8) -> Bool {
            (UInt8(ascii: "a")...UInt8(ascii: "z")).contains(byte)
                || (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte)
                || byte == UInt8(ascii: "-")
        }
        guard !name.isEmpty, name.utf8.allSatisfy(isAllowed) else {
            throw VMMError("a command's name has the characters a-z, 0-9 and '-' only")
        }
        guard let function = entry.function else { throw VMMError("it has no function") }
        let text = entry.signature.map { String(cString: $0) } ?? ""
        var signature = try Signature(parsing: text)
        guard signature.result == .int32, signature.arguments.first == Signature.Item(letter: .host) else {
            throw VMMError("the signature '\(text)' does not begin with 'i(h'")
        }
        signature.arguments.removeFirst()
        let items = signature.arguments + signature.results
        guard items.count <= valuesLimit else {
            throw VMMError("it has more than \(valuesLimit) arguments and results")
        }
        guard !items.contains(where: { $0.letter == .host }) else {
            throw VMMError("the signature '\(text)' has a second 'h'")
        }
        guard !signature.results.contains(where: { $0.letter == .descriptor }) else {
            throw VMMError("the signature '\(text)' has an 'f' as a result, which QMP cannot carry")
        }
        let parameters = try CommandTable.parameters(items, entry.parameters)
        let call = ForeignCommand(
            function: ForeignFunction(module: module, name: name, function: function, signature: signature),
            arguments: Array(parameters[..<signature.arguments.count]),
            results: Array(parameters[signature.arguments.count...]))
        return QMPCommand(
            name, arguments: call.arguments.map(\.member),
            returns: call.results.isEmpty
                ? .empty : .object(name: "\(name)-result", members: call.results.map(\.member)),
            handler: { arguments throws(VMMError) in try call.run(arguments) })
    }

    private static func event(_ entry: baton_event, _ name: String) throws(VMMError) -> [QMPMember] {
        func isAllowed(_ byte: UInt8) -> Bool {
            (UInt8(ascii: "A")...UInt8(ascii: "Z")).contains(byte)
                || (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte)
                || byte == UInt8(ascii: "_")
        }
        guard !name.isEmpty, name.utf8.allSatisfy(isAllowed) else {
            throw VMMError("an event's name has the characters A-Z, 0-9 and '_' only")
        }
        let text = entry.signature.map { String(cString: $0) } ?? ""
        let items = try Signature.items(Array(text.utf8)[...], text)
        guard !items.contains(where: { $0.letter == .host || $0.letter == .descriptor }) else {
            throw VMMError("the signature '\(text)' has an 'h' or 'f', which an event cannot carry")
        }
        return try parameters(items, entry.parameters).map(\.member)
    }

    private static func parameters(
        _ items: [Signature.Item], _ table: UnsafePointer<baton_parameter>?
    ) throws(VMMError) -> [ForeignParameter] {
        guard !items.isEmpty else { return [] }
        guard let table else { throw VMMError("it has no names for its arguments and results") }
        var result: [ForeignParameter] = []
        var names: Set<String> = []
        for (index, item) in items.enumerated() {
            guard let name = table[index].name.map({ String(cString: $0) }), !name.isEmpty else {
                throw VMMError("argument or result \(index + 1) has no name")
            }
            guard names.insert(name).inserted else { throw VMMError("the name '\(name)' is there twice") }
            result.append(
                try ForeignParameter(
                    name: name, item: item, minimum: table[index].minimum, maximum: table[index].maximum))
        }
        return result
    }
}
