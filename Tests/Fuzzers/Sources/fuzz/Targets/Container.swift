@testable import BatonCPR
@testable import BatonMachine
import BatonRuntime

/// The format of checkpoints: the container, and the fields of its sections.
extension Target {
    static let container = Target(
        name: "container",
        seeds: {
            var container = SectionContainer(kind: .checkpoint)
            var writer = StateWriter()
            writer.put("number", 1 as UInt64)
            writer.put("array", [1, 2, 3])
            writer.put("text", "abc")
            writer.put("texts", ["a", "", "b"])
            writer.put("bytes", bytes: [1, 2, 3])
            writer.put("flag", true, optional: true)
            container.add("one", version: 1, writer)
            var many = StateWriter()
            for index in 0..<20 { many.put("\(index)", UInt64(index)) }
            container.add("many", version: 3, optional: true, many)
            container.add("empty", version: 1, StateWriter())
            return [container.encoded(), SectionContainer(kind: .checkpoint).encoded()]
        },
        make: {
            { input in
                guard
                    let container = try? SectionContainer(
                        kind: .checkpoint, parsing: Sections.mended(input), name: "the input")
                else { return }
                for section in container.sections {
                    let searched = container.section(section.name)
                    expect(searched?.payload == section.payload, "section '\(section.name)' is another when searched")
                    if let reader = try? container.reader(section) { try Target.read(reader) }
                }
                let encoded = container.encoded()
                let again = try SectionContainer(kind: .checkpoint, parsing: encoded, name: "what was encoded")
                expect(again.sections.count == container.sections.count, "sections were lost")
                for (one, other) in zip(container.sections, again.sections) {
                    expect(
                        one.name == other.name && one.version == other.version && one.optional == other.optional
                            && one.payload == other.payload, "section '\(one.name)' is another after it was encoded")
                }
            }
        })

    /// Reads every field as what it is, and as what it is not.
    private static func read(_ reader: StateReader) throws {
        for field in reader.dump {
            expect(reader.has(field.name), "field '\(field.name)' is not found")
            let isNumber = (try? reader.unsigned(field.name)) != nil
            expect(!isNumber || field.type == .unsigned, "field '\(field.name)' is read as a number")
            _ = try? reader.bool(field.name)
            _ = try? reader.uint32(field.name)
            _ = try? reader.string(field.name)
            _ = try? reader.bytes(field.name, count: 0...16)
            _ = try? reader.array(field.name, count: 0...16)
            _ = try? reader.strings(field.name, count: 0...16)
        }
        try reader.finish()
    }
}
