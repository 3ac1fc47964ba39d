import BatonRuntime

/// The command line, split into options and their arguments but not yet
/// understood. The order of options of the same name is kept.
struct Invocation {
    private var options: [(name: String, value: String)] = []
    /// The same, by name: command lines of thousands of options are looked through at every start.
    private var values: [String: [String]] = [:]

    /// - Parameter arguments: without the program's name. Options start with
    ///   one or two dashes, `@FILE` stands for those in a file; anything else is a disk image, as in QEMU.
    init(_ arguments: [String]) throws(VMMError) {
        var rest = try OptionFile.expand(arguments)[...]
        while let argument = rest.popFirst() {
            guard let name = OptionTable.name(argument) else {
                add("drive", "file=\(Invocation.escaped(argument)),if=virtio")
                continue
            }
            guard let spec = OptionTable.find(name) else {
                if let refusal = RefusedOptions.error(for: name) { throw refusal }
                throw VMMError("\(argument): invalid option", hint: "Use -help for the list of options.")
            }
            var value = ""
            if spec.argument != nil {
                guard let next = rest.popFirst() else { throw VMMError("\(argument): requires an argument") }
                value = next
            }
            if let drive = OptionTable.shortDrives[name] {
                add("drive", "file=\(Invocation.escaped(value)),\(drive)")
            } else {
                add(name == "M" ? "machine" : name == "help" ? "h" : name, value)
            }
        }
    }

    private mutating func add(_ name: String, _ value: String) {
        options.append((name, value))
        values[name, default: []].append(value)
    }

    private static func escaped(_ text: String) -> String {
        var result = ""
        for character in text { result += character == "," ? ",," : String(character) }
        return result
    }

    /// Whether an option was given.
    func has(_ name: String) -> Bool { values[name] != nil }
    /// Every argument of an option, in order.
    func all(_ name: String) -> [String] { values[name] ?? [] }
    /// The last argument of an option, or nil.
    func last(_ name: String) -> String? { values[name]?.last }
    /// Arguments of several options, in the order given.
    func inOrder(_ names: [String]) -> [(name: String, value: String)] { options.filter { names.contains($0.name) } }
}
