import Foundation
import TestSupport
import Testing

/// `-nographic` on a terminal: the serial line and the monitor share it.
@Suite("The terminal of -nographic")
struct TerminalTests {
    /// The executable on a pseudo-terminal.
    private final class Terminal {
        let master: Int32
        let slave: Int32
        let baton: ChildProcess
        private var seen = ""
        /// Everything that has been shown.
        private(set) var transcript = ""

        init(_ arguments: [String]) throws {
            var ends: (Int32, Int32) = (-1, -1)
            guard openpty(&ends.0, &ends.1, nil, nil, nil) == 0 else { throw TestError("openpty") }
            (master, slave) = ends
            for fd in [master, slave] { _ = fcntl(fd, F_SETFD, FD_CLOEXEC) }
            _ = fcntl(master, F_SETFL, O_NONBLOCK)
            baton = try ChildProcess([Products.baton] + arguments, descriptors: [0: slave, 1: slave])
        }
        deinit {
            close(master)
            close(slave)
        }

        func type(_ text: String) { _ = Array(text.utf8).withUnsafeBytes { write(master, $0.baseAddress, $0.count) } }

        func expect(_ text: String) throws {
            try eventually("'\(text)' on the terminal; so far '\(seen)' \(baton.errors)") {
                var state = pollfd(fd: master, events: Int16(POLLIN), revents: 0)
                poll(&state, 1, 10)
                var buffer = [UInt8](repeating: 0, count: 4096)
                let count = read(master, &buffer, buffer.count)
                if count > 0 {
                    let text = String(decoding: buffer[..<count], as: UTF8.self)
                    seen += text
                    transcript += text
                }
                guard let range = seen.range(of: text) else { return false }
                seen.removeSubrange(..<range.upperBound)
                return true
            }
        }

        var echoes: Bool {
            var mode = termios()
            return tcgetattr(slave, &mode) == 0 && mode.c_lflag & tcflag_t(ECHO) != 0
        }
        /// Where the executable is mapped: elsewhere after an exec.
        var imageAddresses: String? {
            let maps = try? String(contentsOfFile: "/proc/\(baton.pid)/maps", encoding: .utf8)
            return maps.flatMap { $0.split(separator: "\n").first { $0.hasSuffix("/baton") } }.map { String($0) }
        }
        var blocks: Bool { fcntl(slave, F_GETFL) & O_NONBLOCK == 0 }
    }

    @Test("Ctrl-A c reaches the monitor, Ctrl-C does not end the VMM, Ctrl-A x does, and the terminal is as before")
    func multiplexer() throws {
        let terminal = try Terminal(["-S", "-nographic"])
        try eventually("raw mode") { !terminal.echoes }
        terminal.type("\u{1}h")
        try terminal.expect("C-a x    exit emulator")
        terminal.type("\u{1}c")
        try terminal.expect("monitor - type 'help' for more information")
        try terminal.expect("(baton) ")
        terminal.type("info status\r")
        try terminal.expect("VM status: paused (prelaunch)")
        terminal.type("\u{3}info version\r")
        try terminal.expect("baton-")
        terminal.type("\u{1}x")
        try terminal.expect("Terminated")
        #expect(try terminal.baton.waitForExit() == .status(0))
        #expect(terminal.echoes && terminal.blocks)
    }

    @Test("A signal ends the VMM with the terminal as before", arguments: [SIGTERM, SIGINT, SIGHUP])
    func signals(number: Int32) throws {
        let terminal = try Terminal(["-S", "-nographic"])
        terminal.type("\u{1}c")
        try terminal.expect("(baton) ")
        terminal.baton.signal(number)
        #expect(try terminal.baton.waitForExit() == .status(0))
        #expect(terminal.echoes && terminal.blocks)
    }

    @Test("A VMM that cannot start leaves the terminal as before")
    func failedStart() throws {
        let terminal = try Terminal(["-nographic", "-kernel", "/nowhere/kernel"])
        #expect(try terminal.baton.waitForExit() == .status(1))
        #expect(terminal.echoes && terminal.blocks)
    }

    @Test("A VMM that waits for a client can be interrupted")
    func interruptedWait() throws {
        let directory = try TemporaryDirectory()
        let terminal = try Terminal(["-S", "-nographic", "-qmp", "unix:\(directory.file("qmp")),server=on"])
        try terminal.baton.waitForErrors("waiting for connection")
        #expect(!terminal.echoes)
        terminal.baton.signal(SIGINT)
        #expect(try terminal.baton.waitForExit() == .status(1))
        #expect(terminal.echoes && terminal.blocks)
    }

    @Test("The terminal goes over to the next VMM, and is as before in the end")
    func restart() throws {
        let directory = try TemporaryDirectory()
        let arguments = [
            "-S", "-nographic", "-cpr-enable", "restart", "-m", "16M",
            "-object", "memory-backend-memfd,id=ram,size=16M,share=on", "-machine", "virt,memory-backend=ram",
            "-sandbox", "paths=\(directory.path)",
        ]
        let terminal = try Terminal(arguments)
        terminal.type("\u{1}c")
        try terminal.expect("(baton) ")
        for round in 1...3 {
            terminal.type("cpr-save \(directory.file("state")) restart\r")
            try terminal.expect("(baton) ")
            let image = terminal.imageAddresses
            terminal.type("cpr-exec \(([Products.baton] + arguments).joined(separator: " "))\r")
            try eventually("the exec and raw mode; \(terminal.transcript)") {
                terminal.imageAddresses != image && !terminal.echoes
            }
            // The new process' focus is on the monitor as before, and its session goes on.
            try terminal.expect("(baton) ")
            terminal.type("cpr-load \(directory.file("state")) restart\r")
            terminal.type("info cpr\r")
            try terminal.expect("updates: \(round)")
        }
        #expect(!terminal.transcript.contains("Error"), "\(terminal.transcript)")
        terminal.type("quit\r")
        #expect(try terminal.baton.waitForExit() == .status(0))
        #expect(terminal.echoes && terminal.blocks)
    }

    @Test("Output goes on after the end of the input")
    func endOfInput() throws {
        let baton = try ChildProcess(
            [Products.baton, "-S", "-nodefaults", "-nographic", "-monitor", "stdio"], withInput: true)
        try baton.write("info status\nquit\n")
        baton.closeInput()
        #expect(try baton.waitForExit() == .status(0))
        #expect(baton.output.contains("VM status: paused (prelaunch)"))
    }
}
