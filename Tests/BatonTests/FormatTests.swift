import Foundation
import TestSupport
import Testing

/// The formats of checkpoint and CPR state as they are documented, against
/// files of a real VM; and what a VM does with files of a later one.
@Suite("Checkpoint format", .enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"))
struct FormatTests {
    private func read(_ path: String) throws -> FormatReader {
        try FormatReader(try Data(contentsOf: URL(fileURLWithPath: path)))
    }

    private func inode(_ path: String) throws -> UInt64 {
        let attributes = try FileManager.default.attributesOfItem(atPath: path)
        return try #require((attributes[.systemFileNumber] as? NSNumber)?.uint64Value)
    }

    private static let catching = ["sh", "-c", "cp /proc/self/fd/$BATON_CPR_STATE \"$0\"; exec \"$@\""]

    @Test("A reader made from the document reads a checkpoint")
    func checkpoint() throws {
        let guest = try CountingGuest()
        try guest.save()
        let checkpoint = try read(guest.checkpoint)
        #expect(checkpoint.magic == "BATONVM\0")
        #expect(checkpoint["global"]?["run-state"]?.text == "running")
        #expect(checkpoint["global"]?["machine"]?.text == "virt")
        #expect(checkpoint["global"]?["mode"]?.text == "restart")
        let version = try ChildProcess.run([Products.baton, "-version"])
        #expect(version == "Baton emulator version baton-\(checkpoint["global"]?["version"]?.text ?? "?")\n")
        let ram = try #require(checkpoint["ram"])
        let index = try #require((0..<Int(ram["count"]?.number ?? 0)).first { ram["\($0).name"]?.text == "ram" })
        #expect(ram["\(index).used-length"]?.number == 16 << 20)
        #expect(ram["\(index).file"]?.text == guest.ramFile)
        #expect(ram["\(index).inode"]?.number == (try inode(guest.ramFile)))
        let cpu = try #require(checkpoint["cpu0"])
        #expect(cpu["x"]?.type == 4 && cpu["x"]?.value.count == 32 * 8)
        #expect((0x8000_0000..<0x8000_1000).contains(cpu["pc"]?.number ?? 0))
        // What is written by the same rules is the same file.
        #expect(checkpoint.encoded == (try Data(contentsOf: URL(fileURLWithPath: guest.checkpoint))))
    }

    @Test("The contents of volatile memory are where the document says")
    func contents() throws {
        let directory = try TemporaryDirectory()
        let process = try ChildProcess([
            Products.baton, "-m", "4M", "-cpr-enable", "reboot", "-nodefaults", "-nographic", "-S", "-bios", "none",
            "-qmp", "unix:\(directory.file("qmp")),server=on,wait=off", "-sandbox", "paths=\(directory.path)",
        ])
        let qmp = try QMPClient(path: directory.file("qmp"), of: process)
        try qmp.execute("cpr-save", ["filename": directory.file("state"), "mode": "reboot"])
        try qmp.execute("quit")
        try process.waitForExit()
        let checkpoint = try read(directory.file("state"))
        let list = try #require(checkpoint["ram-contents"])
        let count = Int(list["count"]?.number ?? 0)
        #expect(count > 0)
        // The small ones: the sum here is a slow one.
        for index in 0..<count where (list["\(index).length"]?.number ?? 0) <= 4 << 20 {
            let offset = Int(list["\(index).offset"]?.number ?? 0)
            let block = checkpoint.contents[offset..<offset + Int(list["\(index).length"]?.number ?? 0)]
            #expect(UInt64(FormatReader.crc(block)) == list["\(index).crc32c"]?.number, "\(index)")
        }
    }

    @Test("A CPR state is caught on its way, and shows which memory and which descriptors it carries")
    func cprState() throws {
        let guest = try CountingGuest()
        try guest.save()
        let file = guest.directory.file("cpr-state")
        try guest.exec(Self.catching + [file] + guest.arguments + ["-S"])
        try guest.load()
        try guest.waitForProgress(past: guest.count)

        let state = try read(file)
        #expect(state.magic == "BATONCPR")
        #expect(state["cpr"]?["mode"]?.text == "restart")
        #expect(state["cpr"]?["generation"]?.number == 1)
        let fds = try #require(state["fds"])
        #expect(fds.version == 2)
        #expect(fds["names"]?.type == 5 && fds["names"]?.text.contains("chardev-compat_monitor0-listener") == true)
        #expect(fds["ids"]?.value.count == fds["fds"]?.value.count)
        #expect(state["part/chardev/compat_monitor0"]?.optional == true)

        let tool = "\(Products.directory)/baton-ctl"
        let table = try ChildProcess.run([tool, "inspect", file])
        #expect(table.contains("\(file): CPR state, "))
        #expect(
            table.contains("memory ram: 16777216 bytes, \(guest.ramFile), inode \(try inode(guest.ramFile)), fd "),
            "\(table)")
        let text = try ChildProcess.run([tool, "inspect", "--json", file])
        let object = try #require(try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [String: Any])
        let memory = (object["memory"] as? [[String: Any]])?.first { $0["name"] as? String == "ram" }
        #expect((memory?["inode"] as? NSNumber)?.uint64Value == (try inode(guest.ramFile)))
    }

    @Test("What a later version adds is refused by its name, or ignored where it says so")
    func laterVersions() throws {
        let guest = try CountingGuest(extra: ["-cpr-enable", "reboot"])
        try guest.save(mode: "reboot")
        let stopped = guest.count
        try guest.qmp.execute("quit")
        try guest.restart(["-S"])
        let good = try read(guest.checkpoint)
        func load(_ changed: FormatReader) throws -> String {
            let file = try guest.directory.write("later", changed.encoded)
            return refusal { try guest.qmp.execute("cpr-load", ["filename": file, "mode": "reboot"]) }
        }
        func index(_ name: String) throws -> Int { try #require(good.sections.firstIndex { $0.name == name }) }
        let field = FormatReader.Field(name: "novelty", type: 1, value: Data(count: 8))
        let section = FormatReader.Section(name: "teleporter", version: 1, fields: [field])

        var later = good
        later.sections.append(section)
        #expect(try load(later).contains("Unknown savevm section or instance 'teleporter'"))
        for (name, known) in [("global", 1), ("cpu0", 1), ("serial0", 1)] where good[name] != nil {
            later = good
            later.sections[try index(name)].fields.append(field)
            #expect(try load(later).contains("section '\(name)' has the unknown field 'novelty'"))
            later = good
            later.sections[try index(name)].version = 99
            let text = try load(later)
            #expect(
                text.contains("section '\(name)'") && text.contains("has version 99, this VMM knows up to \(known)"))
        }
        later = good
        later.sections[try index("cpu0")].fields.removeAll { $0.name == "pc" }
        #expect(try load(later).contains("field 'pc' of section 'cpu0' is missing"))
        later = good
        later.sections.removeAll { $0.name == "clint" }
        #expect(try load(later).contains("has no section 'clint'"))
        later = good
        later.sections.append(try #require(good["cpu0"]))
        #expect(try load(later).contains("has two sections 'cpu0'"))

        // All of it optional: the VM takes the state, after all those refusals.
        later = good
        later.sections.append(FormatReader.Section(name: "teleporter", version: 7, optional: true, fields: [field]))
        for name in ["global", "clock", "ram", "cpu0"] {
            var optional = field
            optional.optional = true
            later.sections[try index(name)].fields.append(optional)
        }
        #expect(guest.count == stopped)
        #expect(try load(later) == "accepted")
        try guest.waitForProgress(past: stopped)
        try guest.qmp.execute("quit")
    }
}
