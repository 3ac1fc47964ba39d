import ProcessSupport

/// One line of a soak's script: which machine, what is done to it, and how.
///
///     disk update fault=crashes preflight=off
package struct SoakStep: Equatable, CustomStringConvertible {
    package let machine: SoakMachine.Kind
    package let action: SoakAction
    private let options: [String: String]

    package init(_ machine: SoakMachine.Kind, _ action: SoakAction, _ options: [String: String] = [:]) {
        self.machine = machine
        self.action = action
        self.options = options
    }

    /// - Throws: what no script may say.
    package init(_ line: Substring) throws {
        let words = line.split(whereSeparator: \.isWhitespace)
        guard let name = words.first, let machine = SoakMachine.Kind(rawValue: String(name)) else {
            throw Failure("'\(line)': the first word names no machine (\(Self.list(SoakMachine.Kind.allCases)))")
        }
        guard words.count > 1, let action = SoakAction(rawValue: String(words[1])) else {
            throw Failure("'\(line)': the second word names no action (\(Self.list(SoakAction.allCases)))")
        }
        var options: [String: String] = [:]
        for word in words.dropFirst(2) {
            let parts = word.split(separator: "=", maxSplits: 1).map(String.init)
            guard parts.count == 2, let values = action.options[parts[0]] else {
                throw Failure("'\(line)': '\(word)' is no option of \(action.rawValue)")
            }
            guard values.isEmpty ? UInt64(parts[1]) != nil : values.contains(parts[1]) else {
                let expected = values.isEmpty ? "a number" : values.joined(separator: ", ")
                throw Failure("'\(line)': '\(parts[0])' is \(expected), not '\(parts[1])'")
            }
            options[parts[0]] = parts[1]
        }
        let missing = action.required.subtracting(options.keys)
        guard missing.isEmpty else {
            throw Failure("'\(line)': \(missing.sorted().joined(separator: ", ")) is missing")
        }
        self.init(machine, action, options)
    }

    private static func list<T: RawRepresentable<String>>(_ values: [T]) -> String {
        values.map(\.rawValue).joined(separator: ", ")
    }

    package subscript(_ option: String) -> String? { options[option] }
    package func number(_ option: String) -> UInt64 { options[option].flatMap(UInt64.init) ?? 0 }

    package var description: String {
        let words = options.sorted { $0.key < $1.key }.map { "\($0.key)=\($0.value)" }
        return ([machine.rawValue, action.rawValue] + words).joined(separator: " ")
    }
}

/// A list of steps as text: one a line. Empty lines and what begins with # are for readers.
package enum SoakScript {
    package static func parse(_ text: String) throws -> [SoakStep] {
        try text.split(whereSeparator: \.isNewline).filter { line in
            let first = line.first { !$0.isWhitespace }
            return first != nil && first != "#"
        }.map { try SoakStep($0) }
    }

    /// - Parameter heading: for readers, a line each.
    package static func text(_ steps: [SoakStep], heading: [String] = []) -> String {
        (heading.map { "# \($0)" } + steps.map(\.description)).joined(separator: "\n") + "\n"
    }
}
