import BatonRuntime
import Monitor
import TestSupport
import Testing

/// A client that sends hundreds of commands at once does not keep the others, or the guest, waiting for all of them.
@Suite("Monitors' shares")
struct ShareTests {
    private final class Slow {
        var count = 0
        func work() {
            count += 1
            let end = EventLoop.now + 2_000_000
            while EventLoop.now < end {}
        }
    }

    private static let most = 60

    @Test("A QMP client that sends many commands at once")
    func qmp() throws {
        let machine = try TestMachine()
        let slow = Slow()
        try machine.vm.commands.add(
            QMPCommand("slow") { (_: JSONObject) throws(VMMError) -> JSON in
                slow.work()
                return [:]
            })
        let busy = try machine.makeSession("busy")
        let other = try machine.makeSession("other")
        let request = #"{"execute":"slow","id":7}"#
        let sent = busy.trySend(Array(String(repeating: request, count: Self.most).utf8)[...])
        #expect(sent == request.utf8.count * Self.most)
        // The first command has been carried out: now the other client comes.
        try machine.turn("the first command") { slow.count > 0 }
        #expect(slow.count < Self.most)
        #expect(try other.ask(#"{"execute":"query-status"}"#)["return"] != nil)
        #expect(slow.count < Self.most)
        for _ in 0..<Self.most { #expect(try busy.message()["id"]?.intValue == 7) }
        #expect(slow.count == Self.most)
        // And it is listened to as before.
        #expect(try busy.ask(#"{"execute":"query-status"}"#)["return"] != nil)
    }

    @Test("A human monitor that is given many lines at once")
    func hmp() throws {
        let machine = try TestMachine()
        let slow = Slow()
        try machine.vm.commands.add(
            HMPCommand("slow", help: "takes its time") { (_: String) throws(VMMError) -> String in
                slow.work()
                return "done\n"
            })
        let (chardev, peer) = try machine.makePair("monitor")
        try HMPMonitor(vm: machine.vm, chardev: chardev)
        try peer.expect("(baton) ")
        let other = try machine.makeSession("other")
        let sent = peer.trySend(Array(String(repeating: "slow\n", count: Self.most).utf8)[...])
        #expect(sent == 5 * Self.most)
        try machine.turn("the first command") { slow.count > 0 }
        #expect(try other.ask(#"{"execute":"query-status"}"#)["return"] != nil)
        #expect(slow.count < Self.most)
        for _ in 0..<Self.most { try peer.expect("done\r\n(baton) ") }
        try peer.send("slow\n")
        try peer.expect("done\r\n(baton) ")
        #expect(slow.count == Self.most + 1)
    }
}
