import BatonBase

/// The type of a QMP argument or result, as `query-qmp-schema` describes it
/// and as arguments are checked against before a handler sees them.
public indirect enum QMPType {
    case bool, int, number, string, any, null
    /// An integer that may be greater than `Int64.max`.
    case uint
    /// One of a fixed set of strings; the name is the schema's type name.
    case enumeration(name: String, values: [String])
    case array(QMPType)
    case object(name: String, members: [QMPMember])

    public static let empty = QMPType.object(name: "q_empty", members: [])
}

/// A member of an object type.
public struct QMPMember {
    public var name: String
    public var type: QMPType
    public var optional: Bool
    public init(_ name: String, _ type: QMPType, optional: Bool = false) {
        self.name = name
        self.type = type
        self.optional = optional
    }
}

/// One QMP command.
public struct QMPCommand {
    public var name: String
    public var arguments: [QMPMember]
    public var returns: QMPType
    /// Whether there may be more arguments than `arguments`, which the handler checks.
    public var takesMore: Bool
    /// Runs on the main thread with arguments that have been checked against
    /// `arguments`. What it throws becomes the error reply.
    public var handler: (JSONObject) throws(VMMError) -> JSON

    public init(
        _ name: String, arguments: [QMPMember] = [], returns: QMPType = .empty, takesMore: Bool = false,
        handler: @escaping (JSONObject) throws(VMMError) -> JSON
    ) {
        self.name = name
        self.arguments = arguments
        self.returns = returns
        self.takesMore = takesMore
        self.handler = handler
    }
}

/// One HMP command.
public struct HMPCommand {
    /// As typed: `cpr-save`, or `info status` for a subcommand of `info`.
    public var name: String
    /// Parameters as `help` shows them: `filename mode`.
    public var parameters: String
    public var help: String
    /// Gets the rest of the line, trimmed; returns what is printed, with its
    /// final newline, or an empty string.
    public var handler: (String) throws(VMMError) -> String

    public init(
        _ name: String, parameters: String = "", help: String,
        handler: @escaping (String) throws(VMMError) -> String
    ) {
        self.name = name
        self.parameters = parameters
        self.help = help
        self.handler = handler
    }
}

/// The commands of the monitors. Parts and modules add theirs; the monitors
/// look them up.
public final class CommandRegistry {
    public private(set) var qmp: [String: QMPCommand] = [:]
    public private(set) var hmp: [String: HMPCommand] = [:]
    /// Event names with their data's type, for `query-qmp-schema`.
    public private(set) var events: [String: QMPType] = [:]

    public init() {}

    /// - Throws: an error when the name is taken.
    public func add(_ command: QMPCommand) throws(VMMError) {
        guard qmp.updateValue(command, forKey: command.name) == nil else {
            throw VMMError("QMP command '\(command.name)' is already registered")
        }
    }

    /// - Throws: an error when the name is taken.
    public func add(_ command: HMPCommand) throws(VMMError) {
        guard hmp.updateValue(command, forKey: command.name) == nil else {
            throw VMMError("HMP command '\(command.name)' is already registered")
        }
    }

    public func addEvent(_ name: String, data: QMPType = .empty) { events[name] = data }
}
