import BatonRuntime

/// Carries out the requests of one QMP session.
final class QMPDispatcher {
    private let commands: CommandRegistry
    /// Whether the client has left the capabilities negotiation.
    var isNegotiated = false

    init(commands: CommandRegistry) { self.commands = commands }

    /// What a request is answered with by the next process, when it is one
    /// that replaces this process.
    static func replacementAnswer(to request: Result<JSON, VMMError>) -> JSON {
        var response = JSONObject()
        let object = (try? request.get())?.objectValue
        // The human monitor's output is a string, empty for cpr-exec.
        let isHuman = object?["execute"]?.stringValue == "human-monitor-command"
        response["return"] = isHuman ? .string("") : [:]
        if let id = object?["id"] { response["id"] = id }
        return .object(response)
    }

    /// - Returns: the whole response, with the request's id.
    func dispatch(_ request: Result<JSON, VMMError>) -> JSON {
        var id: JSON?
        var response = JSONObject()
        do throws(VMMError) {
            let value = try request.get()
            guard case .object(let object) = value else { throw VMMError("QMP input must be a JSON object") }
            id = object["id"]
            response["return"] = try execute(object)
        } catch {
            response["error"] = ["class": .string(error.errorClass.rawValue), "desc": .string(error.message)]
        }
        if let id { response["id"] = id }
        return .object(response)
    }

    private func execute(_ request: JSONObject) throws(VMMError) -> JSON {
        var name: String?
        var arguments = JSONObject()
        for (key, value) in request.members {
            switch key {
            case "execute":
                guard let text = value.stringValue else {
                    throw VMMError("QMP input member 'execute' must be a string")
                }
                name = text
            case "arguments":
                guard let object = value.objectValue else {
                    throw VMMError("QMP input member 'arguments' must be an object")
                }
                arguments = object
            case "id": break
            default: throw VMMError("QMP input member '\(key)' is unexpected")
            }
        }
        guard let name else { throw VMMError("QMP input lacks member 'execute'") }

        if name == "qmp_capabilities" { return try negotiate(arguments) }
        guard isNegotiated else {
            throw VMMError("Expecting capabilities negotiation with 'qmp_capabilities'", class: .commandNotFound)
        }
        guard let command = commands.qmp[name] else {
            throw VMMError("The command \(name) has not been found", class: .commandNotFound)
        }
        try QMPArguments.check(arguments, against: command.arguments, takesMore: command.takesMore)
        return try command.handler(arguments)
    }

    private func negotiate(_ arguments: JSONObject) throws(VMMError) -> JSON {
        guard !isNegotiated else {
            throw VMMError(
                "Capabilities negotiation is already complete, command ignored", class: .commandNotFound)
        }
        try QMPArguments.check(arguments, against: QMPDispatcher.capabilitiesArguments)
        if let first = arguments["enable"]?.arrayValue?.first?.stringValue {
            throw VMMError("Capability \(first) not available")
        }
        isNegotiated = true
        return [:]
    }

    static let capabilitiesArguments = [
        QMPMember("enable", .array(.enumeration(name: "QMPCapability", values: ["oob"])), optional: true)
    ]
}
