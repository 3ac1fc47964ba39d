import BatonRuntime

/// `-readconfig FILE`: options in the INI format of QEMU's (`qemu_config_parse`). A section is an option, and its lines
/// are the option's properties:
///
///     [machine]
///       type = "virt"
///     [device "net0"]
///       driver = "virtio-net-pci"
///
/// The options stand where the file is named on the command line. What it says is read at each start.
enum ConfigFile {
    /// An option of the file.
    struct Section {
        /// The option's name.
        let option: String
        /// As the command line would give it.
        fileprivate(set) var argument: String
        /// The file and line of its head.
        let place: String
    }

    /// QEMU's names of sections that are not those of their options.
    private static let sections = ["memory": "m", "smp-opts": "smp", "boot-opts": "boot"]

    /// Reads a file.
    /// - Throws: an error with the file and line.
    static func read(_ path: String) throws(VMMError) -> [Section] {
        var result: [Section] = []
        for (index, line) in try OptionLines.read(path).enumerated() {
            let place = OptionLines.place(path, index + 1)
            var rest = Substring(line).drop(while: isBlank)
            guard let first = rest.first, first != "#" else { continue }
            do throws(VMMError) {
                if first == "[" {
                    rest.removeFirst()
                    result.append(try head(rest, at: place))
                } else {
                    let (key, value) = try property(rest)
                    guard !result.isEmpty else { throw VMMError("no group defined") }
                    add(key, value, to: &result[result.count - 1])
                }
            } catch {
                throw error.prefixed(place)
            }
        }
        return result
    }

    private static func isBlank(_ character: Character) -> Bool { character == " " || character == "\t" }

    private static func parseError() -> VMMError {
        VMMError("parse error", hint: "A line is [section], [section \"id\"], key = \"value\" or # comment.")
    }

    /// `section]` or `section "id"]`.
    private static func head(_ text: Substring, at place: String) throws(VMMError) -> Section {
        let name = String(text.prefix { isNameCharacter($0) })
        var rest = text.dropFirst(name.count).drop(while: isBlank)
        var id: String?
        if rest.first == "\"" { id = try quoted(&rest) }
        guard !name.isEmpty, rest.first == "]", isEnd(rest.dropFirst()) else { throw parseError() }
        let option = sections[name] ?? name
        guard !sections.values.contains(name), let spec = OptionTable.find(option), spec.takesProperties else {
            throw VMMError("There is no option group '\(name)'")
        }
        var section = Section(option: option, argument: "", place: place)
        if let id {
            guard KeyValueOptions.isIdentifier(id) else { throw VMMError("Parameter 'id' expects an identifier") }
            add("id", id, to: &section)
        }
        return section
    }

    /// `key = "value"`.
    private static func property(_ text: Substring) throws(VMMError) -> (key: String, value: String) {
        let key = text.prefix { !isBlank($0) && $0 != "=" }
        var rest = text.dropFirst(key.count).drop(while: isBlank)
        guard !key.isEmpty, rest.first == "=" else { throw parseError() }
        rest = rest.dropFirst().drop(while: isBlank)
        let value = try quoted(&rest)
        guard isEnd(rest) else { throw parseError() }
        guard key.allSatisfy(isNameCharacter) else { throw VMMError("Invalid parameter '\(key)'") }
        return (String(key), value)
    }

    /// Takes what is in quotes, and them. As in QEMU there is no way to have a quote in a value.
    private static func quoted(_ rest: inout Substring) throws(VMMError) -> String {
        guard rest.first == "\"", let end = rest.dropFirst().firstIndex(of: "\"") else { throw parseError() }
        let text = String(rest[rest.index(after: rest.startIndex)..<end])
        rest = rest[rest.index(after: end)...]
        return text
    }

    private static func isNameCharacter(_ character: Character) -> Bool {
        character.isASCII && (character.isLetter || character.isNumber || "-_.".contains(character))
    }

    private static func isEnd(_ text: Substring) -> Bool { text.first { !isBlank($0) }.map { $0 == "#" } ?? true }

    private static func add(_ key: String, _ value: String, to section: inout Section) {
        if !section.argument.isEmpty { section.argument += "," }
        section.argument += "\(key)=\(Invocation.escaped(value))"
    }
}
