import ArgumentParser
import BatonRuntime
import Foundation

/// `baton-ctl inspect FILE`: prints what is in a checkpoint, without a VMM.
struct Inspect: ReportingCommand {
    static let configuration = CommandConfiguration(
        abstract: "Prints the sections and fields of a checkpoint or CPR state.")

    @Argument(help: "The file that cpr-save wrote.")
    var file: String

    @Flag(help: "Print JSON.")
    var json = false

    @Option(help: "Print this section only.")
    var section: String?

    func execute() throws {
        let container = try SectionContainer(file: file)
        let chosen = container.sections.filter { section == nil || $0.name == section }
        if let section, chosen.isEmpty { throw VMMError("\(file) has no section '\(section)'") }
        if json {
            try printJSON(container, chosen)
        } else {
            try printTable(container, chosen)
        }
    }

    // A file may have millions of fields: each is printed as it is read.

    private func printTable(_ container: SectionContainer, _ sections: [SectionContainer.Section]) throws {
        // Whatever a name or a text in the file says, it is shown and not done.
        func show(_ line: String) { print(TerminalText.escaped(line)) }
        show("\(file): \(container.kind), \(sections.count) sections")
        if section == nil { try MemoryBlock.forEach(in: container) { show("memory \($0)") } }
        for section in sections {
            let optional = section.optional ? ", optional" : ""
            print("")
            show("\(section.name) (version \(section.version), \(section.payload.count) bytes\(optional))")
            let fields = try container.reader(section).dump
            let width = fields.reduce(0) { max($0, TerminalText.escaped($1.name).count) }
            for field in fields.lazy.map({ FieldText(name: $0.name, type: $0.type, payload: $0.payload) }) {
                let name = TerminalText.escaped(field.name)
                show("  \(name.padding(toLength: width, withPad: " ", startingAt: 0))  \(field.text)")
            }
        }
    }

    private func printJSON(_ container: SectionContainer, _ sections: [SectionContainer.Section]) throws {
        print("{\"file\": \(JSON.string(file).text()), \"kind\": \(JSON.string("\(container.kind)").text()),")
        if section == nil {
            print(" \"memory\": [", terminator: "")
            var items = ItemPrinter(indentation: "  ")
            try MemoryBlock.forEach(in: container) { items.print($0.json) }
            print("],")
        }
        print(" \"sections\": [", terminator: "")
        for (index, section) in sections.enumerated() {
            print(
                "\(index > 0 ? "," : "")\n  {\"name\": \(JSON.string(section.name).text()), "
                    + "\"version\": \(section.version), \"optional\": \(section.optional), \"fields\": [",
                terminator: "")
            var items = ItemPrinter(indentation: "    ")
            for field in try container.reader(section).dump {
                let text = FieldText(name: field.name, type: field.type, payload: field.payload)
                items.print(["name": .string(text.name), "value": text.json])
            }
            print("]}", terminator: "")
        }
        print("]}")
    }
}

/// Prints the elements of a JSON array one by one.
private struct ItemPrinter {
    let indentation: String
    private var isFirst = true

    init(indentation: String) { self.indentation = indentation }

    mutating func print(_ item: JSON) {
        Swift.print("\(isFirst ? "" : ",")\n\(indentation)\(item.text())", terminator: "")
        isFirst = false
    }
}

/// One field of a section, as text and as JSON.
struct FieldText {
    let name: String
    let text: String
    let json: JSON

    init(name: String, type: StateFieldType, payload: ArraySlice<UInt8>) {
        self.name = name
        var cursor = ByteCursor(payload)
        switch type {
        case .unsigned:
            let value = cursor.unsigned(UInt64.self) ?? 0
            text = value < 10 ? "\(value)" : "\(value) (\(Hex(value)))"
            json = JSON(value)
        case .string:
            let value = String(decoding: payload, as: UTF8.self)
            text = "\"\(value)\""
            json = .string(value)
        case .bytes:
            let hex = payload.map { String(UInt16($0) + 0x100, radix: 16).dropFirst() }.joined()
            text = hex.count > 96 ? "\(payload.count) bytes \(hex.prefix(64))…" : "\(payload.count) bytes \(hex)"
            json = .string(hex)
        case .unsignedArray:
            var values: [UInt64] = []
            while let value = cursor.unsigned(UInt64.self) { values.append(value) }
            let shown = values.prefix(8).map { Hex($0).description }.joined(separator: " ")
            text = "\(values.count) values \(shown)" + (values.count > 8 ? " …" : "")
            json = .array(values.map { JSON($0) })
        case .stringArray:
            var values: [String] = []
            while let length = cursor.unsigned(UInt32.self), let bytes = cursor.take(Int(length)) {
                values.append(String(decoding: bytes, as: UTF8.self))
            }
            let shown = values.prefix(8).map { "\"\($0)\"" }.joined(separator: " ")
            text = "\(values.count) values \(shown)" + (values.count > 8 ? " …" : "")
            json = .array(values.map { .string($0) })
        }
    }
}
