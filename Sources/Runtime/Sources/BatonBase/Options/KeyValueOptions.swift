/// The parsed argument of an option such as `-chardev socket,id=c0,path=/x`.
///
/// A consumer takes the keys that it knows with the typed accessors and then
/// calls `finish`, which refuses what is left. Where a key is given more than
/// once, the last one counts, as in QEMU. Main thread only.
public final class KeyValueOptions {
    /// Which of QEMU's two syntaxes the text has.
    public enum Style {
        /// QemuOpts: a word without `=` is a flag, `noWORD` turns it off.
        case options
        /// keyval: every parameter after an implied first key needs `=`.
        case keyval
    }

    struct Entry {
        var key: String
        var value: Value
        var taken = false
    }

    /// Text is what the command line gave and is parsed for the type that the
    /// consumer asks for; JSON has types of its own.
    enum Value {
        case text(String)
        case json(JSON)
    }

    /// Whether the text asked for help: a bare `help` or `?`.
    public private(set) var wantsHelp = false
    /// It was a word of its own, and no value that may be a name.
    private var hasHelpWord = false
    /// The text as it was given, for messages.
    public let source: String
    let style: Style
    var entries: [Entry] = []

    /// Parses `VALUE,key=value,flag,noflag` with `,,` for a comma in a value,
    /// or a JSON object when the text starts with `{`, whose nested members
    /// become dotted keys (`addr.type`, `list.0`).
    /// - Parameters:
    ///   - impliedKey: the key of a first value without `=`; nil when there is none.
    ///   - style: which syntax; see `Style`.
    public init(_ text: String, impliedKey: String? = nil, style: Style = .options) throws(VMMError) {
        source = text
        if text.utf8.first == UInt8(ascii: "{") {
            self.style = .keyval
            guard case .object(let object) = try JSON(parsing: text) else {
                throw VMMError("Invalid parameter type, expected: object")
            }
            try flatten(object, prefix: "", depth: 0)
            return
        }
        self.style = style
        try parse(Array(text.utf8), impliedKey: impliedKey)
    }

    /// Takes the members of a JSON object, as QMP's `object-add` gives them.
    public init(_ object: JSONObject) throws(VMMError) {
        source = "JSON"
        style = .keyval
        try flatten(object, prefix: "", depth: 0)
    }

    // MARK: Parsing

    private func parse(_ bytes: [UInt8], impliedKey: String?) throws(VMMError) {
        let comma = UInt8(ascii: ",")
        let equals = UInt8(ascii: "=")
        var position = 0
        var first = true
        while position < bytes.count {
            let end = bytes[position...].firstIndex { $0 == comma || $0 == equals } ?? bytes.count
            var word = String(decoding: bytes[position..<end], as: UTF8.self)
            if end < bytes.count, bytes[end] == equals {
                guard !word.isEmpty else { throw VMMError("Invalid parameter ''") }
                position = end + 1
                entries.append(Entry(key: word, value: .text(Self.value(bytes, &position))))
            } else if first, let impliedKey {
                let value = Self.value(bytes, &position)
                if value == "help" || value == "?" { wantsHelp = true }
                entries.append(Entry(key: impliedKey, value: .text(value)))
            } else {
                position = min(end + 1, bytes.count)
                if word == "help" || word == "?" {
                    wantsHelp = true
                    hasHelpWord = true
                } else if style == .keyval {
                    throw VMMError(word.isEmpty ? "Invalid parameter ''" : "Expected '=' after parameter '\(word)'")
                } else {
                    let off = word.hasPrefix("no")
                    if off { word.removeFirst(2) }
                    guard !word.isEmpty else { throw VMMError("Invalid parameter '\(off ? "no" : "")'") }
                    entries.append(Entry(key: word, value: .text(off ? "off" : "on")))
                }
            }
            first = false
        }
    }

    /// Reads a value up to a comma that is not doubled, and moves past that.
    private static func value(_ bytes: [UInt8], _ position: inout Int) -> String {
        let comma = UInt8(ascii: ",")
        var value: [UInt8] = []
        while position < bytes.count {
            let byte = bytes[position]
            position += 1
            if byte == comma {
                guard position < bytes.count, bytes[position] == comma else { break }
                position += 1
            }
            value.append(byte)
        }
        return String(decoding: value, as: UTF8.self)
    }

    private func flatten(_ object: JSONObject, prefix: String, depth: Int) throws(VMMError) {
        for (key, value) in object.members {
            guard !key.isEmpty else { throw VMMError("Invalid parameter ''") }
            try flatten(value, key: prefix + key, depth: depth)
        }
    }

    private func flatten(_ value: JSON, key: String, depth: Int) throws(VMMError) {
        guard depth < 16 else { throw VMMError("Parameter '\(key)' is nested too deeply") }
        switch value {
        case .object(let object):
            try flatten(object, prefix: key + ".", depth: depth + 1)
        case .array(let array):
            for (index, element) in array.enumerated() {
                try flatten(element, key: "\(key).\(index)", depth: depth + 1)
            }
        default:
            entries.append(Entry(key: key, value: .json(value)))
        }
    }

    // MARK: Keys

    /// Whether the key was given; does not take it.
    public func has(_ key: String) -> Bool { entries.contains { $0.key == key } }

    /// The keys that no accessor has taken, in order, each once.
    public var untakenKeys: [String] {
        var keys: [String] = []
        for entry in entries where !entry.taken && !keys.contains(entry.key) { keys.append(entry.key) }
        return keys
    }

    /// Every key, in order, each once.
    public var keys: [String] {
        var keys: [String] = []
        for entry in entries where !keys.contains(entry.key) { keys.append(entry.key) }
        return keys
    }

    /// Sets a value, as if it had been given last.
    public func set(_ key: String, _ value: String) { entries.append(Entry(key: key, value: .text(value))) }

    /// Takes a key, with every value that it was given, and sets it in other options.
    public func move(_ key: String, to other: KeyValueOptions) {
        for index in entries.indices where entries[index].key == key {
            entries[index].taken = true
            other.entries.append(Entry(key: key, value: entries[index].value))
        }
    }

    /// The options under a dotted prefix, as options of their own
    /// (`addr.path` of `addr` becomes `path`); takes them here. An array's
    /// elements are `under("list.0")` and so on.
    public func under(_ prefix: String) -> KeyValueOptions? {
        let dotted = prefix + "."
        let result = KeyValueOptions(source: source, style: style)
        for index in entries.indices where entries[index].key.hasPrefix(dotted) {
            entries[index].taken = true
            let key = String(entries[index].key.dropFirst(dotted.count))
            result.entries.append(Entry(key: key, value: entries[index].value))
        }
        return result.entries.isEmpty ? nil : result
    }

    private init(source: String, style: Style) {
        self.source = source
        self.style = style
    }

    /// Refuses the first key that no accessor has taken, and a call for help that nobody has answered.
    /// - Throws: `Invalid parameter 'KEY'`, or QEMU's `Parameter 'KEY' is unexpected`.
    public func finish() throws(VMMError) {
        // Who asks what there is does not want to have it.
        if hasHelpWord { throw VMMError("there is no help for '\(source)'") }
        guard let entry = entries.first(where: { !$0.taken }) else { return }
        if style == .keyval { throw VMMError("Parameter '\(entry.key)' is unexpected") }
        throw VMMError("Invalid parameter '\(entry.key)'")
    }
}
