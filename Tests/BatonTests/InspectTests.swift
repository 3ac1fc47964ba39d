import Foundation
import TestSupport
import Testing

/// `baton-ctl inspect` on checkpoints of a real VM.
@Suite(.enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"))
struct InspectTests {
    private let tool = "\(Products.directory)/baton-ctl"

    @Test func aCheckpointIsReadableWithoutAVMM() throws {
        let guest = try CountingGuest()
        try guest.save()
        let table = try ChildProcess.run([tool, "inspect", guest.checkpoint])
        #expect(table.contains("checkpoint, ") && table.contains("cpu0 (version "))
        #expect(table.contains("run-state  \"running\""))
        let text = try ChildProcess.run([tool, "inspect", "--json", "--section", "ram", guest.checkpoint])
        let object = try #require(try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [String: Any])
        let section = try #require((object["sections"] as? [[String: Any]])?.first)
        let fields = try #require(section["fields"] as? [[String: Any]])
        #expect(fields.contains { $0["name"] as? String == "0.name" && $0["value"] as? String == "ram" })
        #expect(fields.contains { $0["name"] as? String == "0.used-length" && $0["value"] as? Int == 16 << 20 })
    }

    /// Clears the screen, sets the window's title, turns letters round, ends the line.
    private static let harmful = "\u{1b}[2J\u{1b}]0;x\u{7}\u{9b}31m\u{202e}\u{7f}\r\n"

    @Test func whatAFileSaysDoesNotControlTheTerminal() throws {
        let guest = try CountingGuest()
        try guest.save()
        let good = try FormatReader(try Data(contentsOf: URL(fileURLWithPath: guest.checkpoint)))
        func field(_ name: String, _ type: UInt8, _ value: Data) -> FormatReader.Field {
            FormatReader.Field(name: name, type: type, optional: true, value: value)
        }
        let text = Data(Self.harmful.utf8)
        let length = withUnsafeBytes(of: UInt32(text.count).littleEndian) { Data($0) }
        var changed = good
        changed.sections.append(
            FormatReader.Section(
                name: "s\(Self.harmful)", version: 1, optional: true,
                fields: [
                    field("f\(Self.harmful)", 1, Data(count: 8)), field("text", 2, text),
                    field("list", 5, length + text), field("grün €", 2, Data("ÄÖ 漢字".utf8)),
                ]))
        let ram = try #require(changed.sections.firstIndex { $0.name == "ram" })
        let name = try #require(changed.sections[ram].fields.firstIndex { $0.name == "0.name" })
        changed.sections[ram].fields[name].value = text
        let file = try guest.directory.write("changed", changed.encoded)
        let shown = try ChildProcess.run([tool, "inspect", file])
        let json = try ChildProcess.run([tool, "inspect", "--json", file])
        // Damaged, with the section's name in the message; and a name that is not there.
        var damaged = changed.encoded
        let place = try #require(damaged.range(of: text, options: .backwards)).lowerBound
        damaged[place] ^= 1
        let broken = try ChildProcess([tool, "inspect", try guest.directory.write("damaged", damaged)])
        #expect(try broken.waitForExit() != .status(0))
        let missing = try ChildProcess([tool, "inspect", "--section", Self.harmful, file])
        #expect(try missing.waitForExit() != .status(0))
        for output in [shown, json, broken.errors, missing.errors] {
            let controls = output.unicodeScalars.filter {
                ($0.value < 0x20 && $0 != "\n") || (0x7f..<0xa0).contains($0.value) || $0.value == 0x202e
            }
            #expect(controls.isEmpty, "\(output.debugDescription.prefix(2000))")
        }
        #expect(shown.contains("s\\x1b[2J\\x1b]0;x\\x07\\x9b31m\\u{202e}\\x7f\\r\\n (version 1"))
        #expect(shown.contains("grün €") && shown.contains("\"ÄÖ 漢字\""))
    }

    @Test func anythingElseIsRefused() throws {
        let directory = try TemporaryDirectory()
        let file = try directory.write("text", "no checkpoint")
        let process = try ChildProcess([tool, "inspect", file])
        #expect(try process.waitForExit() != .status(0))
        #expect(process.errors.contains("\(file) is not a vmstate file"))
        let fifo = directory.file("fifo")
        try #require(mkfifo(fifo, 0o600) == 0)
        for (path, kind) in [(fifo, "a FIFO"), ("/dev/zero", "a character device")] {
            let process = try ChildProcess([tool, "inspect", path])
            #expect(try process.waitForExit(by: .seconds(20)) != .status(0))
            #expect(process.errors.contains("Could not open '\(path)': it is \(kind), not a regular file"))
        }
    }
}
