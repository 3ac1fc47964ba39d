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

    @Test func anythingElseIsRefused() throws {
        let directory = try TemporaryDirectory()
        let file = try directory.write("text", "no checkpoint")
        let process = try ChildProcess([tool, "inspect", file])
        #expect(try process.waitForExit() != .status(0))
        #expect(process.errors.contains("\(file) is not a vmstate file"))
    }
}
