import BatonRuntime
import Chardev
import Monitor
import TestSupport
import Testing

@Suite("HMP")
struct HMPTests {
    private func terminal() throws -> (TestMachine, Peer) {
        let machine = try TestMachine()
        let (chardev, peer) = try machine.makePair("monitor")
        try HMPMonitor(vm: machine.vm, chardev: chardev)
        try peer.expect("(baton) ")
        return (machine, peer)
    }

    @Test("Commands are echoed, carried out, and followed by a prompt")
    func commands() throws {
        let (machine, peer) = try terminal()
        machine.vm.name = "demo"
        try peer.send("info name\r")
        #expect(try peer.expect("(baton) ") == "info name\r\ndemo\r\n(baton) ")
        try peer.send("c\n")
        try peer.expect("(baton) ")
        #expect(machine.vm.isRunning)
        try peer.send("info status\r\n")
        #expect(try peer.expect("(baton) ").contains("VM status: running\r\n"))
        try peer.send("nonsense 1 2\n")
        #expect(try peer.expect("(baton) ").contains("unknown command: 'nonsense'"))
        try peer.send("info nonsense\n")
        #expect(try peer.expect("(baton) ").contains("unknown command: 'info nonsense'"))
    }

    @Test("Erasing and recalling lines work")
    func editing() throws {
        let (_, peer) = try terminal()
        try peer.send("xyz\u{7F}\u{7F}\u{7F}info uuid\r")
        #expect(try peer.expect("(baton) ").contains("00000000-0000-0000-0000-000000000000\r\n"))
        try peer.send("junk\u{15}\u{1B}[A\r")
        #expect(try peer.expect("(baton) ").contains("00000000-0000-0000-0000-000000000000\r\n"))
        try peer.send(String(repeating: "é", count: 5000) + "\u{15}info uuid\r")
        #expect(try peer.expect("(baton) ").hasSuffix("info uuid\r\n00000000-0000-0000-0000-000000000000\r\n(baton) "))
    }

    @Test("Help lists every command, and one on request")
    func help() throws {
        let (machine, peer) = try terminal()
        try peer.send("help\r")
        let all = try peer.expect("(baton) ")
        for name in machine.vm.commands.hmp.keys where !name.hasPrefix("info ") { #expect(all.contains(name)) }
        try peer.send("help info status\r")
        #expect(try peer.expect("(baton) ").contains("info status -- "))
        try peer.send("info\r")
        #expect(try peer.expect("(baton) ").contains("info chardev -- "))
    }

    @Test("Every info topic answers, also through QMP")
    func infoTopics() throws {
        let (machine, peer) = try TestMachine.session()
        for name in machine.vm.commands.hmp.keys where name.hasPrefix("info ") {
            let answer = try peer.ask(
                #"{"execute": "human-monitor-command", "arguments": {"command-line": "\#(name)"}}"#)
            let text = try #require(answer["return"]?.stringValue)
            #expect(!text.hasPrefix("unknown"))
            #expect(text.isEmpty || text.hasSuffix("\n"), "\(name): \(text)")
        }
    }

    @Test("Random keys never stop the monitor from answering")
    func fuzz() throws {
        let (machine, peer) = try terminal()
        var random = SeededGenerator(state: 3)
        for round in 0..<50 {
            try peer.send((0..<300).map { _ in UInt8.random(in: 0...255, using: &random) })
            // An escape sequence may have begun: a letter ends it.
            try peer.send("A\u{15}\r")
            try peer.send("help round\(round)\r")
            try peer.expect("unknown command: 'round\(round)'")
        }
        #expect(machine.vm.exitStatus == nil)
    }
}
