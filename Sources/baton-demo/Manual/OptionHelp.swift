import Foundation

/// What `baton -help` says: an option a line, with what it is at column 24 or in the next line.
struct OptionHelp {
    struct Option {
        var name: String
        var argument: String?
        var summary: String
    }
    private(set) var options: [Option] = []

    private static let column = 24

    init(text: String) {
        for line in text.split(separator: "\n") {
            if line.hasPrefix("-") {
                let head = line.count > Self.column && line.dropFirst(Self.column - 1).hasPrefix(" ")
                let words = (head ? line.prefix(Self.column) : line).split(separator: " ", maxSplits: 1)
                guard let name = words.first else { continue }
                let argument = words.count > 1 ? words[1].trimmingCharacters(in: .whitespaces) : ""
                options.append(
                    Option(
                        name: String(name.dropFirst()), argument: argument.isEmpty ? nil : argument,
                        summary: head ? String(line.dropFirst(Self.column)) : ""))
            } else if line.hasPrefix(String(repeating: " ", count: Self.column)), !options.isEmpty {
                options[options.count - 1].summary += line.trimmingCharacters(in: .whitespaces)
            }
        }
    }

    var mdoc: String {
        var result = ".Bl -tag -width Ds\n"
        for option in options {
            result += ".It Fl \(Mdoc.word(option.name))"
            if let argument = option.argument { result += " Ar \(Mdoc.word(argument))" }
            result += "\n\(Mdoc.text(Self.sentence(option.summary)))"
        }
        return result + ".El\n"
    }

    private static func sentence(_ text: String) -> String {
        text.prefix(1).uppercased() + text.dropFirst() + (text.hasSuffix(".") ? "" : ".")
    }
}
