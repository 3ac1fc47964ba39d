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

    @Test("Physical memory is shown in QEMU's notation, and only where there is RAM")
    func examine() throws {
        let (machine, peer) = try terminal()
        let block = try machine.memory.allocate(RAMRequest(name: "ram", usedLength: 8192))
        try machine.vm.addressSpace.map(block, at: 0x1000, size: 8192)
        for index in 0..<16 { (block.host + index).storeBytes(of: UInt8(0xF0 + index), as: UInt8.self) }
        func shown(_ line: String) throws -> String {
            try peer.send(line + "\r")
            return try peer.expect("\r\n(baton) ")
        }
        #expect(
            try shown("xp /4x 0x1000").contains(
                "0000000000001000: 0xf3f2f1f0 0xf7f6f5f4 0xfbfaf9f8 0xfffefdfc\r\n"))
        #expect(try shown("xp/1dh 4096").contains("0000000000001000: -3600\r\n"))
        #expect(try shown("xp /2gx 0x2ff8").contains("0x0000000000000000\r\nCannot access memory at 0x3000\r\n"))
        #expect(try shown("xp /1x 0xffffffffffffffff").contains("Cannot access memory at 0xffffffffffffffff\r\n"))
        #expect(try shown("xp /5000x 0").contains("Error: xp: the count must be from 1 to 4096, not 5000\r\n"))
        #expect(try shown("xp /4z 0").contains("Error: xp: invalid char in format: 'z'\r\n"))
        #expect(try shown("xp").contains("Error: xp: '' is not an address\r\n"))
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
