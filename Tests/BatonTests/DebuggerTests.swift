import Foundation
import TestSupport
import Testing

/// `-gdb` and `gdbserver`: gdb's remote protocol on a guest of the software CPU.
@Suite(
    "A debugger of the guest",
    .enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"))
struct DebuggerTests {
    private static let counter: UInt64 = 0x8040_0008
    /// How often the guest has used its memory: stored to only when it is told to use some.
    private static let uses: UInt64 = 0x8040_0028
    private static let programCounter = 32

    /// A client of the protocol.
    final class Client {
        private let stream: StreamClient
        /// Whether packets are acknowledged.
        private var acknowledges = true

        init(_ socket: String) throws { stream = try StreamClient(socket: socket) }

        func skip(_ text: String) throws { #expect(try stream.expect(text) == text) }
        func sendRaw(_ text: String) throws { try stream.send(text) }
        func sendRaw(_ bytes: [UInt8]) -> Int { stream.send(bytes[...]) }

        static func frame(_ text: String) -> String {
            let sum = text.utf8.reduce(0 as UInt8) { $0 &+ $1 }
            let digits = String(sum, radix: 16)
            return "$\(text)#\(digits.count == 1 ? "0" : "")\(digits)"
        }

        func send(_ text: String) throws {
            try stream.send(Self.frame(text))
            if acknowledges { #expect(try stream.expect("+") == "+") }
        }

        /// The next packet.
        func receive() throws -> String {
            let start = try stream.expect("$")
            #expect(start == "$", "before a packet: \(start)")
            let text = String(try stream.expect("#").dropLast())
            try eventually("a checksum") {
                if self.stream.received.count >= 2 { return true }
                self.stream.poll()
                return false
            }
            let sum = String(try stream.expect(String(decoding: self.stream.received.prefix(2), as: UTF8.self)))
            #expect("$\(text)#\(sum)" == Self.frame(text))
            if acknowledges { try stream.send("+") }
            return text
        }

        func ask(_ text: String) throws -> String {
            try send(text)
            return try receive()
        }

        func useNoAcknowledgement() throws {
            #expect(try ask("QStartNoAckMode") == "OK")
            acknowledges = false
        }

        func register(_ number: Int) throws -> UInt64 {
            let text = try ask("p\(String(number, radix: 16))")
            let bytes = stride(from: 0, to: text.count, by: 2).map { Array(text.utf8)[$0..<$0 + 2] }
                .map { UInt64(String(decoding: $0, as: UTF8.self), radix: 16) ?? 0 }
            return bytes.reversed().reduce(0) { $0 << 8 | $1 }
        }

        func word(_ address: UInt64) throws -> UInt64 {
            let text = try ask("m\(String(address, radix: 16)),8")
            return UInt64(text, radix: 16)?.byteSwapped ?? 0
        }

        var isClosed: Bool {
            stream.poll()
            return stream.isClosed
        }
    }

    private func machine(_ directory: TemporaryDirectory, _ more: [String] = []) throws -> CountingGuest {
        try CountingGuest(
            extra: ["-cpr-enable", "restart", "-gdb", "unix:\(directory.file("gdb"))"] + more)
    }

    private func status(_ guest: CountingGuest) throws -> String? {
        (try guest.qmp.execute("query-status") as? [String: Any])?["status"] as? String
    }

    @Test("A client stops the guest, reads and writes it, steps, and finds breakpoints and watchpoints")
    func packets() throws {
        let directory = try TemporaryDirectory()
        let guest = try machine(directory)
        let gdb = try Client(directory.file("gdb"))
        #expect(try gdb.ask("qSupported:multiprocess+;swbreak+").contains("qXfer:features:read+"))
        #expect(try status(guest) == "paused")
        #expect(try gdb.ask("vMustReplyEmpty") == "")
        #expect(try gdb.ask("?") == "T05thread:01;")
        try gdb.useNoAcknowledgement()
        #expect(try gdb.ask("qfThreadInfo") == "m01")
        #expect(try gdb.ask("qsThreadInfo") == "l")
        #expect(try gdb.ask("qThreadExtraInfo,1") == "435055233020" + "5b72756e6e696e675d")
        #expect(try gdb.ask("T1") == "OK" && gdb.ask("T2") == "E22")
        #expect(try gdb.ask("Hg1") == "OK" && gdb.ask("Hg3") == "E22" && gdb.ask("Hc-1") == "OK")
        // 32 integer registers and pc.
        let all = try gdb.ask("g")
        #expect(all.count == 33 * 16)
        #expect(try gdb.ask("G" + all) == "OK")
        #expect(try gdb.ask("G" + all.dropLast(2)) == "E22")

        // Memory, by both commands, and where there is none.
        let count = guest.count
        #expect(try gdb.word(Self.counter) == count)
        #expect(try gdb.ask("m100000,8") == "E14")
        #expect(try gdb.ask("M80500000,4:01020304") == "OK")
        #expect(try gdb.ask("X80500004,3:a}\u{3}b") == "OK")
        #expect(try gdb.ask("m80500000,7") == "01020304" + "612362")
        #expect(try gdb.ask("M80500000,4:0102") == "E22" && gdb.ask("m80500000,ffffff") == "E22")
        // A device's registers are not looked at.
        #expect(try gdb.ask("m10000000,1") == "E14")

        // A step carries out one instruction, of which few make a round of the loop.
        let start = try gdb.register(Self.programCounter)
        var places: [UInt64] = []
        repeat {
            #expect(try gdb.ask("vCont;s:1") == "T05thread:01;")
            places.append(try gdb.register(Self.programCounter))
        } while places.last != start && places.count < 100
        #expect(places.last == start && places.count > 10)
        #expect(zip([start] + places, places).allSatisfy { $0 != $1 })
        #expect(guest.count == count + 1)
        #expect(try status(guest) == "debug")

        // A breakpoint stops before its instruction, once a round.
        let place = String(places[places.count / 2], radix: 16)
        #expect(try gdb.ask("Z0,\(place),2") == "OK")
        #expect(try gdb.ask("c") == "T05thread:01;")
        #expect(try String(gdb.register(Self.programCounter), radix: 16) == place)
        let before = guest.count
        #expect(try gdb.ask("s") == "T05thread:01;")
        #expect(try gdb.ask("c") == "T05thread:01;")
        #expect(guest.count == before + 1)
        #expect(try String(gdb.register(Self.programCounter), radix: 16) == place)
        #expect(try gdb.ask("z0,\(place),2") == "OK")

        // Watchpoints of all kinds on the counter, which is read and then written in each round.
        let watched = String(Self.counter, radix: 16)
        #expect(try gdb.ask("Z2,\(watched),8") == "OK")
        for _ in 0..<3 {
            let count = guest.count
            #expect(try gdb.ask("c") == "T05thread:01;watch:\(watched);")
            #expect(guest.count == count + 1)
        }
        #expect(try gdb.ask("z2,\(watched),8") == "OK" && gdb.ask("Z3,\(watched),1") == "OK")
        #expect(try gdb.ask("c") == "T05thread:01;rwatch:\(watched);")
        #expect(try gdb.ask("z3,\(watched),1") == "OK" && gdb.ask("Z4,\(watched),8") == "OK")
        #expect(try gdb.ask("c") == "T05thread:01;awatch:\(watched);")
        #expect(try gdb.ask("z4,\(watched),8") == "OK")

        // Ctrl-C, and the human monitor.
        try gdb.send("c")
        let running = guest.count
        try guest.waitForProgress(past: running)
        try gdb.sendRaw("\u{3}")
        #expect(try gdb.receive() == "T02thread:01;")
        let line = "info status".utf8.map { String($0, radix: 16) }.joined()
        #expect(try gdb.ask("qRcmd,\(line)").hasPrefix("O"))
        #expect(try gdb.receive() == "OK")

        // Detached it runs on, without what was set.
        #expect(try gdb.ask("Z0,\(place),2") == "OK")
        #expect(try gdb.ask("D") == "OK")
        let detached = guest.count
        try guest.waitForProgress(past: detached + 1000)
        #expect(try status(guest) == "running")
    }

    @Test("Features and registers are QEMU's, and each register of theirs can be read")
    func description() throws {
        let directory = try TemporaryDirectory()
        let guest = try machine(directory)
        defer { withExtendedLifetime(guest) {} }
        let gdb = try Client(directory.file("gdb"))
        func document(_ name: String) throws -> String {
            var text = ""
            while true {
                let part = try gdb.ask("qXfer:features:read:\(name):\(String(text.utf8.count, radix: 16)),400")
                text += part.dropFirst()
                if part.first == "l" { return text }
                try #require(part.first == "m")
            }
        }
        let target = try document("target.xml")
        #expect(target.contains("<architecture>riscv:rv64</architecture>"))
        var names: [String: Int] = [:]
        for file in ["riscv-64bit-cpu.xml", "riscv-64bit-fpu.xml", "riscv-64bit-virtual.xml", "riscv-csr.xml"] {
            #expect(target.contains("href=\"\(file)\""))
            let text = try document(file)
            #expect(text.hasPrefix("<?xml version=\"1.0\"?>") && text.hasSuffix("</feature>"), "\(file): \(text)")
            for part in text.components(separatedBy: "<reg name=\"").dropFirst() {
                let number = part.components(separatedBy: "regnum=\"")[1].prefix { $0 != "\"" }
                names[String(part.prefix { $0 != "\"" })] = Int(number)
            }
        }
        #expect(try gdb.ask("qXfer:features:read:none.xml:0,10") == "E00")
        for (name, number) in names {
            #expect(try gdb.ask("p\(String(number, radix: 16))").count == 16, "\(name)")
        }
        for (name, value) in [("mhartid", 0), ("priv", 3), ("satp", 0), ("fcsr", 0)] as [(String, UInt64)] {
            #expect(try gdb.register(try #require(names[name])) == value, "\(name)")
        }
        let scratch = String(try #require(names["mscratch"]), radix: 16)
        #expect(try gdb.ask("P\(scratch)=efbeadde00000000") == "OK")
        #expect(try gdb.register(try #require(names["mscratch"])) == 0xdead_beef)
        // Read only, or nowhere.
        #expect(try gdb.ask("P\(String(try #require(names["mhartid"]), radix: 16))=0100000000000000") == "E22")
        #expect(try gdb.ask("pfffff") == "E14" && gdb.ask("Pfffff=00") == "E22")
    }

    @Test("With -S the first instruction is still to come; a hart stands while another steps")
    func harts() throws {
        let directory = try TemporaryDirectory()
        let process = try ChildProcess([
            Products.baton, "-M", "virt", "-m", "16M", "-smp", "3", "-bios", "none", "-kernel",
            try CountingGuest.image(), "-nographic", "-nodefaults", "-S", "-gdb", "unix:\(directory.file("gdb"))",
            "-qmp", "unix:\(directory.file("qmp")),server=on,wait=off", "-sandbox", "paths=\(directory.path)",
        ])
        let gdb = try Client(directory.file("gdb"))
        try gdb.useNoAcknowledgement()
        #expect(try gdb.ask("?") == "T05thread:01;")
        #expect(try gdb.ask("qfThreadInfo") == "m01,02,03")
        #expect(try gdb.register(Self.programCounter) == 0x1000)
        #expect(try gdb.ask("vCont;s:2") == "T05thread:02;")
        #expect(try gdb.register(Self.programCounter) == 0x1004)
        #expect(try gdb.ask("Hg1") == "OK")
        #expect(try gdb.register(Self.programCounter) == 0x1000)
        #expect(try gdb.ask("Hg3") == "OK")
        #expect(try gdb.register(Self.programCounter) == 0x1000)
        // One steps, the others run: all come to the kernel, and two of them wait there.
        #expect(try gdb.ask("vCont;c:4") == "E22" && gdb.ask("vCont;x") == "E22")
        #expect(try gdb.ask("Z1,80000000,4") == "OK")
        #expect(try gdb.ask("vCont;c:3") == "T05thread:03;")
        #expect(try gdb.register(Self.programCounter) == 0x8000_0000)
        #expect(try gdb.ask("vCont;c:1") == "T05thread:01;")
        #expect(try gdb.ask("z1,80000000,4") == "OK")
        // The end of the VMM is the end of the program.
        try gdb.send("c")
        let qmp = try QMPClient(path: directory.file("qmp"), of: process)
        try qmp.execute("quit")
        #expect(try gdb.receive() == "W00")
        #expect(try process.waitForExit() == .status(0))
    }

    @Test("The connection, points and a guest that a debugger has stopped go over updates")
    func updates() throws {
        let directory = try TemporaryDirectory()
        let guest = try machine(directory)
        let gdb = try Client(directory.file("gdb"))
        let uses = String(Self.uses, radix: 16)
        #expect(try gdb.ask("?") == "T05thread:01;")
        #expect(try gdb.ask("Z2,\(uses),8") == "OK")
        try gdb.send("c")
        for _ in 0..<3 {
            let count = guest.count
            try guest.qmp.execute("cpr-update", ["argv": guest.arguments])
            try guest.waitForProgress(past: count)
        }
        guest.setWord(4, 4096)
        #expect(try gdb.receive() == "T05thread:01;watch:\(uses);")
        #expect(try status(guest) == "debug")
        let count = guest.count
        let place = try gdb.register(Self.programCounter)
        // Stopped, and with half of a packet on its way.
        let half = Client.frame("p20")
        try gdb.sendRaw(String(half.prefix(3)))
        try guest.qmp.execute("cpr-update", ["argv": guest.arguments])
        #expect(try status(guest) == "debug")
        try gdb.sendRaw(String(half.dropFirst(3)))
        #expect(try gdb.receivePastAcknowledgement() == Client.littleEndian(place))
        #expect(guest.count == count)
        #expect(try gdb.ask("s") == "T05thread:01;")
        #expect(try gdb.ask("c") == "T05thread:01;watch:\(uses);")
        #expect(guest.word(5) == 2)
        // An update that fails leaves all of it.
        #expect(guest.update(["/bin/false"]) != "accepted")
        #expect(try gdb.ask("c") == "T05thread:01;watch:\(uses);")
        // One by the debugger's own word.
        let line = ("cpr-update " + guest.arguments.joined(separator: " ")).utf8.map { byte in
            (byte < 16 ? "0" : "") + String(byte, radix: 16)
        }.joined()
        var answer = try gdb.ask("qRcmd,\(line)")
        while answer.hasPrefix("O") && answer != "OK" { answer = try gdb.receive() }
        #expect(answer == "OK")
        #expect(try gdb.ask("c") == "T05thread:01;watch:\(uses);")
        // It was the process of the update that failed that has ended.
        #expect(try status(guest) == "debug")
    }

    @Test("gdbserver of the monitor starts and ends a stub, which goes over an update without an option")
    func monitor() throws {
        let directory = try TemporaryDirectory()
        let guest = try CountingGuest()
        func say(_ line: String) throws -> String {
            try guest.qmp.execute("human-monitor-command", ["command-line": line]) as? String ?? ""
        }
        let device = "unix:\(directory.file("gdb"))"
        #expect(try say("gdbserver \(device)") == "Waiting for gdb connection on device '\(device)'\n")
        let gdb = try Client(directory.file("gdb"))
        #expect(try gdb.ask("?") == "T05thread:01;")
        try gdb.send("c")
        try guest.qmp.execute("cpr-update", ["argv": guest.arguments])
        try gdb.sendRaw("\u{3}")
        #expect(try gdb.receive() == "T02thread:01;")
        #expect(try say("gdbserver none") == "Disabled gdbserver\n")
        try eventually("the connection's end") { gdb.isClosed }
        #expect(try say("info chardev").contains("gdb:") == false)
        try guest.qmp.execute("cont")
        let count = guest.count
        try guest.waitForProgress(past: count)
        #expect(try say("gdbserver tcp:nowhere").contains("Could not open gdbserver on device 'tcp:nowhere'"))
    }

    @Test("A client that sends nonsense, and one that never reads, hold nobody up")
    func hostile() throws {
        let directory = try TemporaryDirectory()
        let guest = try machine(directory)
        do {
            let gdb = try Client(directory.file("gdb"))
            for text in [
                "$$$#00", "$#zz", "+-+-", "$p20#00", Client.frame("Z9,0,0"), Client.frame("vCont;s:ffffffffffffffff"),
                Client.frame("mffffffffffffffff,10"), Client.frame("Z0"),
                Client.frame("qXfer:features:read:target.xml:,"),
                Client.frame("P"), Client.frame("H"), Client.frame("X"), Client.frame("M:"), Client.frame("qRcmd,0"),
            ] {
                try gdb.sendRaw(text)
            }
            var flood = [UInt8](repeating: UInt8(ascii: "x"), count: 1 << 20)
            flood[0] = UInt8(ascii: "$")
            var sent = 0
            try eventually("the flood is taken") {
                sent += gdb.sendRaw(Array(flood[sent...]))
                return sent == flood.count
            }
            #expect(try status(guest) == "paused")
        }
        do {
            // Answers of 8 KiB to requests of 20 bytes.
            let gdb = try Client(directory.file("gdb"))
            let request = Array(String(repeating: Client.frame("m80000000,1fff"), count: 20_000).utf8)
            var sent = 0
            for _ in 0..<200 {
                sent += gdb.sendRaw(Array(request[sent...]))
                #expect(try status(guest) == "paused")
            }
            #expect(sent < request.count)
        }
        // Both have gone, and the guest stands. What is left of a client's bytes would stop it again, as in QEMU.
        try eventually("the end of the connection") {
            let chardevs = try guest.qmp.execute("query-chardev") as? [[String: Any]] ?? []
            return chardevs.compactMap { $0["filename"] as? String }
                .contains { $0.hasPrefix("disconnected:") && $0.contains(directory.file("gdb")) }
        }
        try guest.qmp.execute("cont")
        let count = guest.count
        try guest.waitForProgress(past: count)
        #expect(guest.process.isRunning)
    }

    private static let hasDebugger = Products.find("gdb-multiarch") != nil

    @Test("Debian's gdb", .enabled(if: hasDebugger, "needs gdb-multiarch"))
    func debian() throws {
        let directory = try TemporaryDirectory()
        let guest = try machine(directory)
        let script = [
            "set pagination off", "set confirm off", "set architecture riscv:rv64",
            "target remote \(directory.file("gdb"))", "info threads", "p/x $priv", "p/x $mhartid", "p $fa0",
            "p *(unsigned long *)0x80400000 == 0x544e434e4f544142", "set $first = $pc", "stepi", "p $pc != $first",
            "hbreak *$first", "continue", "p $pc == $first", "stepi", "continue", "p $pc == $first", "delete",
            "watch *(unsigned long *)0x80400008", "continue", "continue", "x/2i $pc", "monitor info status",
            "maintenance packet qqemu.sstepbits", "set $t6 = 77", "p $t6", "info registers mstatus", "detach",
        ]
        let gdb = try ChildProcess(
            ["gdb-multiarch", "-nx", "-batch"] + script.flatMap { ["-ex", $0] })
        #expect(try gdb.waitForExit() == .status(0), "\(gdb.report)")
        // What the monitor says is on standard error.
        let output = gdb.output + gdb.errors
        for text in [
            "CPU#0", "mstatus", "$1 = 0x3", "$2 = 0x0", "$4 = 1", "$5 = 1", "$6 = 1", "$7 = 1", "Hardware watchpoint",
            "New value", "paused (debug)", "ENABLE=1,NOIRQ=2", "$8 = 77", "detached",
        ] {
            #expect(output.contains(text), "\(text) in \(gdb.report)")
        }
        let count = guest.count
        try guest.waitForProgress(past: count)
    }
}

extension DebuggerTests.Client {
    /// The next packet, behind the acknowledgement of one that was sent in pieces.
    func receivePastAcknowledgement() throws -> String {
        try skip("+")
        return try receive()
    }

    static func littleEndian(_ value: UInt64) -> String {
        (0..<8).map { index in
            let byte = UInt8(truncatingIfNeeded: value >> UInt64(index * 8))
            return (byte < 16 ? "0" : "") + String(byte, radix: 16)
        }.joined()
    }
}
