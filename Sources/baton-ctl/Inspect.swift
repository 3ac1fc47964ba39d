import ArgumentParser
import BatonRuntime
import Foundation

/// `baton-ctl inspect FILE`: prints what is in a checkpoint, without a VMM.
struct Inspect: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Prints the sections and fields of a checkpoint or CPR state.")

    @Argument(help: "The file that cpr-save wrote.")
    var file: String

    @Flag(help: "Print JSON.")
    var json = false

    @Option(help: "Print this section only.")
    var section: String?

    func run() throws {
        do {
            try inspect()
        } catch let error as VMMError {
            // It may quote the file.
            throw ValidationError(TerminalText.escaped(error.description, keepingLines: true))
        }
    }

    private func inspect() throws {
        let container = try SectionContainer(file: file)
        let chosen = container.sections.filter { section == nil || $0.name == section }
        if let section, chosen.isEmpty {
            throw VMMError("\(file) has no section '\(section)'")
        }
        let sections = try chosen.map { section in
            (
                section,
                try container.reader(section).dump.map { FieldText(name: $0.name, type: $0.type, payload: $0.payload) }
            )
        }
        let blocks = section == nil ? try MemoryBlock.all(in: container) : []
        if json {
            printJSON(container.kind, sections, blocks)
        } else {
            printTable(container.kind, sections, blocks)
        }
    }

    private typealias Sections = [(section: SectionContainer.Section, fields: [FieldText])]

    private func printTable(_ kind: SectionContainer.Kind, _ sections: Sections, _ blocks: [MemoryBlock]) {
        // Whatever a name or a text in the file says, it is shown and not done.
        func show(_ line: String) { print(TerminalText.escaped(line)) }
        show("\(file): \(kind), \(sections.count) sections")
        for block in blocks { show("memory \(block)") }
        for (section, fields) in sections {
            let optional = section.optional ? ", optional" : ""
            print("")
            show("\(section.name) (version \(section.version), \(section.payload.count) bytes\(optional))")
            let names = fields.map { TerminalText.escaped($0.name) }
            let width = names.map(\.count).max() ?? 0
            for (name, field) in zip(names, fields) {
                show("  \(name.padding(toLength: width, withPad: " ", startingAt: 0))  \(field.text)")
            }
        }
    }

    private func printJSON(_ kind: SectionContainer.Kind, _ sections: Sections, _ blocks: [MemoryBlock]) {
        let list = sections.map { section, fields in
            JSON.object([
                "name": .string(section.name), "version": .int(Int64(section.version)),
                "optional": .bool(section.optional),
                "fields": .array(fields.map { ["name": .string($0.name), "value": $0.json] }),
            ])
        }
        var object: JSONObject = ["file": .string(file), "kind": .string("\(kind)")]
        if section == nil { object["memory"] = .array(blocks.map(\.json)) }
        object["sections"] = .array(list)
        print(JSON.object(object).text(pretty: true))
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
