import Foundation
import TestSupport
import Testing

/// A monitor's client goes away while the new VMM starts, and another one comes. Its session may look as that of the
/// first one did, so that no state of it goes along: only its connection does.
@Suite(
    "A new client during an update",
    .enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"))
struct NewClientTests {
    @Test("It goes on with its session in the new VMM")
    func session() throws {
        let directory = try TemporaryDirectory()
        let guest = try CountingGuest(extra: [
            "-cpr-enable", "restart", "-qmp", "unix:\(directory.file("other")),server=on,wait=off",
            "-monitor", "unix:\(directory.file("hmp")),server=on,wait=off",
        ])
        var other: QMPClient? = try QMPClient(path: directory.file("other"))
        var human: StreamClient? = try StreamClient(socket: directory.file("hmp"))
        try human?.expect("(baton) ")
        #expect(try other?.status() == "running")
        let (started, go) = (directory.file("started"), directory.file("go"))
        let script = "touch \(started); while [ ! -e \(go) ]; do sleep 0.02; done; exec \"$@\""
        try guest.qmp.executeWithoutAnswer(
            "cpr-update", ["argv": ["sh", "-c", script, "sh"] + guest.arguments, "preflight": false])
        try eventually("the exec") { FileManager.default.fileExists(atPath: started) }
        (other, human) = (nil, nil)
        let second = try QMPClient(path: directory.file("other"))
        #expect(try second.status() == "running")
        let secondHuman = try StreamClient(socket: directory.file("hmp"))
        try secondHuman.expect("(baton) ")
        try directory.write("go", "")
        while let message = try guest.qmp.receive(), message["event"] != nil {}
        #expect(try second.status() == "running")
        try secondHuman.send("info status\n")
        try secondHuman.expect("VM status: running")
    }
}
