import Foundation
import ProcessSupport

extension Harness {
    static let connectionRows = [
        Row(
            "qmp-connection", "the QMP connection stays open, with half a command over each update", .executes,
            .keepsConnections
        ) {
            harness in
            let machine = try harness.machine()
            for way in try harness.ways() where way.executes {
                for _ in 0..<3 {
                    try machine.go(way)
                    let status = try machine.status()
                    try require(status == "running", "the answer is '\(status)'")
                }
            }
            let argv = String(decoding: try JSONEncoder().encode(machine.arguments), as: UTF8.self)
            let mode = harness.configuration.mode
            let update = #"{"execute": "cpr-update", "arguments": {"argv": \#(argv), "mode": "\#(mode)"}, "id": 71}"#
            try machine.qmp.send(update + #"{"execute": "query-na"#)
            try require(try machine.nextAnswer() == 71, "the update was not answered first")
            try machine.qmp.send(#"me", "id": 72}"#)
            try require(try machine.nextAnswer() == 72, "half a command was lost over the update")
            return "answered after each update, the second half after the last too"
        },
        Row(
            "monitor-connection", "the human monitor's connection stays open, with half a line over each update",
            .executes, .keepsConnections
        ) { harness in
            let machine = try harness.machine()
            guard let monitor = machine.monitor else { throw Failure("there is no monitor") }
            for way in try harness.ways() where way.executes {
                try monitor.send("info st")
                try monitor.expect("info st")
                try machine.go(way)
                try monitor.send("atus\n")
                let shown = try monitor.expect("(baton) ")
                try require(shown.hasPrefix("atus") && shown.contains("VM status: running"), "it showed '\(shown)'")
            }
            return "a line was typed over each update"
        },
        Row(
            "open-files", "sockets, terminals and files of chardevs are the same open file descriptions",
            .executes, .keepsConnections
        ) { harness in
            let machine = try harness.machine()
            let pid = try machine.statedPID()
            let held = try Descriptors(of: pid) {
                $0.hasPrefix("socket:") || $0 == "/dev/ptmx" || $0.hasSuffix("/ptmx") || $0 == machine.logFile
            }
            // Listeners and connections of two monitors and the serial line, a pty and a file.
            try require(held.held.count >= 8, "the VMM has \(held.held.map(\.link)) open")
            for way in try harness.ways() where way.executes {
                try machine.go(way)
                try held.expectKept(by: try machine.statedPID())
            }
            return "\(held.held.count) of them"
        },
        Row(
            "accepted-connection", "an accepted connection keeps what neither side has read", .handsOver,
            .keepsConnections
        ) {
            harness in
            let machine = try harness.machine()
            guard let serial = machine.serial else { throw Failure("there is no serial line") }
            for (round, way) in try harness.ways().filter({ $0 != .newProcess }).enumerated() {
                // The guest's lines are left unread, and the guest stands while 3000 bytes are sent to it.
                try machine.expectLooksFine()
                _ = try machine.stop()
                let bytes = (0..<3000).map { UInt8(71 + ($0 &* 7 &+ $0 / 20 &+ round) % 20) }
                let before = serial.echoed.count
                try require(serial.send(bytes[...]) == bytes.count, "the connection takes no 3000 bytes")
                try machine.go(way)
                try machine.execute("cont")
                try eventually("the echo of what was sent before \(way.text)", by: harness.configuration.deadline) {
                    try serial.read()
                    try require(!serial.isClosed, "the connection was closed")
                    return serial.echoed.count >= before + bytes.count
                }
                try require(
                    Array(serial.echoed[before...]) == bytes, "\(way.text): what was sent did not arrive as it was")
            }
            try require(serial.line > 0, "the guest wrote nothing")
            return "\(serial.echoed.count) bytes to the guest, \(serial.line) lines from it"
        },
        Row(
            "listening-socket", "a listening socket keeps the client that waits in it, and takes it later", .handsOver,
            .keepsConnections
        ) {
            harness in
            let machine = try harness.machine()
            // One client at a time: the second waits in the socket that must be kept.
            let early = try StreamClient(
                socket: machine.directory.file("hmp"), patience: harness.configuration.timeout)
            for way in try harness.ways() where way != .newProcess { try machine.go(way, reconnectsMonitor: false) }
            machine.monitor = nil
            try early.expect("(baton) ")
            try early.send("info status\n")
            let answer = try early.expect("(baton) ")
            try require(answer.contains("VM status: running"), "it answered '\(answer)'")
            return "answered after the update"
        },
        Row("terminal", "a pseudo-terminal keeps its name", .handsOver, .keepsConnections) { harness in
            let machine = try harness.machine()
            let name = try machine.filename(ofChardev: "pty")
            let terminal = try StreamClient(terminal: String(name.dropFirst("pty:".count)))
            for way in try harness.ways() where way != .newProcess {
                try machine.go(way)
                let now = try machine.filename(ofChardev: "pty")
                try require(now == name, "\(way.text): it was \(name) and is \(now)")
                terminal.poll()
                try require(!terminal.isClosed, "\(way.text): the terminal was closed")
            }
            return name
        },
        Row("file", "a file is written on where it was", .handsOver, .keepsConnections) { harness in
            var options = Machine.Options()
            options.serialToFile = true
            let machine = try harness.machine(options)
            for way in try harness.ways() where way != .newProcess {
                try machine.expectLooksFine()
                try machine.go(way)
            }
            try machine.expectLooksFine()
            _ = try machine.stop()
            let text = try String(contentsOfFile: machine.serialFile, encoding: .utf8)
            let lines = text.split(separator: "\r\n", omittingEmptySubsequences: false)
            for (index, line) in lines.dropLast().enumerated() {
                let expected = SerialLine.text(of: UInt64(index + 1), stepsPerLine: machine.guest.stepsPerLine)
                try require("\(line)\r\n" == expected, "line \(index + 1) is '\(line)'")
            }
            return "\(lines.count - 1) lines"
        },
    ]
}

extension Machine {
    /// The id of the next answer, which must be a success.
    func nextAnswer() throws -> Int? {
        while let message = try qmp.receive(by: configuration.deadline) {
            if message["event"] != nil { continue }
            try require(message["return"] != nil, "the answer is \(message)")
            return message["id"] as? Int
        }
        throw Failure("the QMP connection was closed")
    }

    func filename(ofChardev label: String) throws -> String {
        let list = try execute("query-chardev") as? [[String: Any]] ?? []
        guard let name = list.first(where: { $0["label"] as? String == label })?["filename"] as? String else {
            throw Failure("query-chardev has no '\(label)': \(list)")
        }
        return name
    }
}
