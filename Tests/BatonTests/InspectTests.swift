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
        #expect(try broken.waitForExit() == .status(1))
        let missing = try ChildProcess([tool, "inspect", "--section", Self.harmful, file])
        #expect(try missing.waitForExit() == .status(1))
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
        #expect(try process.waitForExit() == .status(1))
        #expect(process.errors.contains("\(file) is not a vmstate file"))
        let fifo = directory.file("fifo")
        try #require(mkfifo(fifo, 0o600) == 0)
        for (path, kind) in [(fifo, "a FIFO"), ("/dev/zero", "a character device")] {
            let process = try ChildProcess([tool, "inspect", path])
            #expect(try process.waitForExit(by: .seconds(20)) == .status(1))
            #expect(process.errors.contains("Could not open '\(path)': it is \(kind), not a regular file"))
        }
    }

    /// A checkpoint whose one section has as many fields as fit.
    private func manyFields(_ size: Int, _ directory: TemporaryDirectory) throws -> String {
        func word<T: FixedWidthInteger>(_ value: T) -> [UInt8] {
            withUnsafeBytes(of: value.littleEndian) { Array($0) }
        }
        // That of FormatReader takes a bit at a time.
        var table: [UInt32] = []
        for byte in 0..<256 as Range<UInt32> {
            var value = byte
            for _ in 0..<8 { value = value & 1 == 1 ? value >> 1 ^ 0x82f6_3b78 : value >> 1 }
            table.append(value)
        }
        func crc(_ bytes: [UInt8]) -> [UInt8] {
            var value = ~UInt32(0)
            for byte in bytes { value = value >> 8 ^ table[Int((value ^ UInt32(byte)) & 0xff)] }
            return word(~value)
        }
        var payload: [UInt8] = []
        payload.reserveCapacity(size + 32)
        var count = 0
        while payload.count < size {
            let name = Array(String(count, radix: 36).utf8)
            payload += [UInt8(name.count)] + name + [3, 1, 0, 0, 0, 0]
            count += 1
        }
        var head = word(4 as UInt16) + word(1 as UInt16)
        head += word(1 as UInt32) + word(UInt32(payload.count))
        let named = Array("many".utf8) + payload
        let body = head + crc(head + named) + named
        var header = Array("BATONVM\0".utf8) + word(1 as UInt32)
        header += word(1 as UInt32) + word(UInt64(body.count))
        let start = header + crc(header) + word(0 as UInt32)
        return try directory.write("many-\(size)", Data(start + body))
    }

    /// What `baton-ctl inspect` takes in user mode, in seconds, with no more than so much memory of its own.
    private func time(_ arguments: [String], memory: Int) throws -> Double {
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0)
        let shell = ["sh", "-c", "ulimit -d \(memory >> 10) && exec \"$@\"", "sh", tool, "inspect"]
        var words: [UnsafeMutablePointer<CChar>?] = (shell + arguments).map { strdup($0) } + [nil]
        defer { for word in words { free(word) } }
        var pid: pid_t = 0
        try #require(posix_spawn(&pid, "/bin/sh", &actions, nil, &words, environ) == 0)
        var usage = rusage()
        var status: Int32 = 0
        while wait4(pid, &status, 0, &usage) < 0 && errno == EINTR {}
        #expect(status == 0, "\(arguments)")
        return Double(usage.ru_utime.tv_sec) + Double(usage.ru_utime.tv_usec) / 1e6
    }

    @Test(arguments: [[], ["--json"]])
    func whatAFileCostsIsASmallMultipleOfItsSize(_ options: [String]) throws {
        let directory = try TemporaryDirectory()
        let sizes = try [5 << 20, 20 << 20].map { try manyFields($0, directory) }
        // Four times the size; a cost that grew with the square of it would be sixteen times as high, each time.
        var times: [(small: Double, large: Double)] = []
        repeat {
            let pair = try sizes.map { try time(options + [$0], memory: 128 << 20) }
            times.append((pair[0], pair[1]))
        } while times.count < 3 && !times.contains { $0.large < 8 * max($0.small, 0.1) }
        #expect(times.contains { $0.large < 8 * max($0.small, 0.1) }, "\(times)")
    }
}
