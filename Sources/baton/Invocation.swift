import BatonRuntime

/// The command line, split into options and their arguments but not yet
/// understood. The order of options of the same name is kept.
struct Invocation {
    /// An option with its argument, which is empty for one that takes none.
    struct Option {
        let name: String
        let value: String
        /// The file and line where it stands; nil for the command line itself.
        let place: String?
    }

    private var options: [Option] = []
    /// The same, by name: command lines of thousands of options are looked through at every start.
    private var byName: [String: [Option]] = [:]

    /// - Parameter arguments: without the program's name. Options start with
    ///   one or two dashes, `@FILE` stands for those in a file; anything else is a disk image, as in QEMU.
    init(_ arguments: [String]) throws(VMMError) {
        var rest = try OptionFile.expand(arguments)[...]
        while let word = rest.popFirst() {
            do throws(VMMError) {
                try take(word, &rest)
            } catch {
                throw Invocation.placed(error, word.place)
            }
        }
    }

    private mutating func take(_ word: OptionFile.Word, _ rest: inout ArraySlice<OptionFile.Word>) throws(VMMError) {
        let argument = word.text
        guard let name = OptionTable.name(argument) else {
            return add("drive", "file=\(Invocation.escaped(argument)),if=virtio", word.place)
        }
        guard let spec = OptionTable.find(name) else {
            if let refusal = RefusedOptions.error(for: name) { throw refusal }
            throw VMMError("\(argument): invalid option", hint: "Use -help for the list of options.")
        }
        var value = ""
        if spec.argument != nil {
            guard let next = rest.popFirst() else { throw VMMError("\(argument): requires an argument") }
            value = next.text
        }
        if name == "readconfig" {
            for section in try ConfigFile.read(value) { add(section.option, section.argument, section.place) }
        } else if let drive = OptionTable.shortDrives[name] {
            add("drive", "file=\(Invocation.escaped(value)),\(drive)", word.place)
        } else {
            add(name == "M" ? "machine" : name == "help" ? "h" : name, value, word.place)
        }
    }

    private mutating func add(_ name: String, _ value: String, _ place: String?) {
        let option = Option(name: name, value: value, place: place)
        options.append(option)
        byName[name, default: []].append(option)
    }

    /// Text as a value of a key, in which a comma is doubled.
    static func escaped(_ text: String) -> String {
        var result = ""
        for character in text { result += character == "," ? ",," : String(character) }
        return result
    }

    private static func placed(_ error: VMMError, _ place: String?) -> VMMError {
        place.map { error.prefixed($0) } ?? error
    }

    /// Whether an option was given.
    func has(_ name: String) -> Bool { byName[name] != nil }
    /// Every argument of an option, in order.
    func all(_ name: String) -> [String] { byName[name]?.map(\.value) ?? [] }
    /// The last argument of an option, or nil.
    func last(_ name: String) -> String? { byName[name]?.last?.value }
    /// Arguments of several options, in the order given.
    func inOrder(_ names: [String]) -> [Option] { options.filter { names.contains($0.name) } }

    /// Calls `body` with every argument of an option, in order.
    /// - Throws: what it throws, with the file and line of an option that stands in a file.
    func each(_ name: String, _ body: (String) throws(VMMError) -> Void) throws(VMMError) {
        for option in byName[name] ?? [] { try at(option.place) { () throws(VMMError) in try body(option.value) } }
    }

    /// Calls `body` with the last argument of an option, if there is one.
    /// - Throws: as `each`.
    func withLast(_ name: String, _ body: (String) throws(VMMError) -> Void) throws(VMMError) {
        guard let option = byName[name]?.last else { return }
        try at(option.place) { () throws(VMMError) in try body(option.value) }
    }

    /// Calls `body`, and adds to its errors the place of the option that it is about.
    func at(_ place: String?, _ body: () throws(VMMError) -> Void) throws(VMMError) {
        do throws(VMMError) { try body() } catch { throw Invocation.placed(error, place) }
    }
}
