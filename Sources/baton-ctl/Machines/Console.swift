import ArgumentParser
import BatonRuntime
import Foundation

/// `baton-ctl console`: the terminal becomes the guest's.
struct Console: ReportingCommand {
    static let configuration = CommandConfiguration(
        abstract: "Connects the terminal to a guest's serial console.",
        discussion: """
            Ctrl-] leaves it. The console must be a unix socket that listens, as baton@.service makes it, a TCP socket, \
            or a pseudo-terminal. It stays connected while the VMM is updated.
            """)

    @Argument(help: "The VM.", completion: MachineDirectory.names)
    var name: String?

    @OptionGroup var choice: MachineChoice

    @Option(help: ArgumentHelp("The chardev.", valueName: "id"))
    var chardev = "serial0"

    @Option(help: "Milliseconds within which the VM must answer.")
    var timeoutMs: Int64 = 10_000

    private static let escape = UInt8(0x1d)

    func execute() throws {
        let machine = try choice.machine(name)
        let fd = try open(try place(machine))
        defer { close(fd) }
        var saved = termios()
        let isTerminal = tcgetattr(0, &saved) == 0
        if isTerminal {
            FileHandle.standardError.write(
                Data("Connected to \(TerminalText.escaped(machine.name)). Ctrl-] leaves.\r\n".utf8))
            var raw = saved
            cfmakeraw(&raw)
            tcsetattr(0, TCSANOW, &raw)
        }
        defer { if isTerminal { tcsetattr(0, TCSANOW, &saved) } }
        let hasEnded = relay(fd)
        if isTerminal { print("\r") }
        if hasEnded { Complaint.print("the console was closed\r") }
    }

    /// What the chardev is, as `query-chardev` gives it: `unix:/path,server=on`, `pty:/dev/pts/3`.
    private func place(_ machine: Machine) throws -> String {
        let monitor = try machine.connect(milliseconds: timeoutMs)
        let all = (try monitor.execute("query-chardev").arrayValue ?? []).compactMap(\.objectValue)
        guard let found = all.first(where: { $0["label"]?.stringValue == chardev }) else {
            let known = all.compactMap { $0["label"]?.stringValue }.joined(separator: ", ")
            throw VMMError("the VM has no chardev '\(chardev)'", hint: "It has: \(known).")
        }
        return found["filename"]?.stringValue ?? ""
    }

    private func open(_ filename: String) throws -> Int32 {
        var text = filename
        if text.hasPrefix("pty:") {
            let path = String(text.dropFirst("pty:".count))
            return try FD.open(path, O_RDWR | O_NOCTTY | O_NONBLOCK).release()
        }
        // The VMM serves one client: another that is there is not disconnected.
        guard text.hasPrefix("disconnected:") else {
            let isSocket = text.hasPrefix("unix:") || text.hasPrefix("tcp:")
            throw VMMError(
                isSocket ? "the console is in use, or is no server: \(text)" : "the console goes to '\(text)'",
                hint: isSocket ? nil : "Start the VM with -serial unix:PATH,server=on,wait=off or -serial pty.")
        }
        text = String(text.dropFirst("disconnected:".count))
        text = text.split(separator: ",").first.map(String.init) ?? text
        let address: SocketAddress
        if text.hasPrefix("unix:") {
            address = .unix(path: String(text.dropFirst("unix:".count)))
        } else if text.hasPrefix("tcp:"), let colon = text.lastIndex(of: ":") {
            address = .tcp(
                host: text[..<colon].dropFirst("tcp:".count).trimmingCharacters(in: ["[", "]"]),
                port: String(text[text.index(after: colon)...]))
        } else {
            throw VMMError("the console goes to '\(filename)'")
        }
        return try address.startConnecting().fd
    }

    /// - Returns: whether the console has ended, and not the user's part of it.
    private func relay(_ fd: Int32) -> Bool {
        var buffer = [UInt8](repeating: 0, count: 4096)
        while true {
            var states = [
                pollfd(fd: 0, events: Int16(POLLIN), revents: 0), pollfd(fd: fd, events: Int16(POLLIN), revents: 0),
            ]
            guard poll(&states, 2, -1) > 0 else { continue }
            if states[1].revents != 0 {
                let count = read(fd, &buffer, buffer.count)
                // A pseudo-terminal whose other end is closed gives EIO.
                if count == 0 || (count < 0 && errno != EAGAIN && errno != EINTR) { return true }
                if count > 0 { FileHandle.standardOutput.write(Data(buffer[..<count])) }
            }
            guard states[0].revents != 0 else { continue }
            let count = read(0, &buffer, buffer.count)
            if count < 0 && errno == EINTR { continue }
            guard count > 0 else { return false }
            let typed = buffer[..<count]
            let end = typed.firstIndex(of: Self.escape) ?? typed.endIndex
            do throws(VMMError) { try send(Array(typed[..<end]), to: fd) } catch { return true }
            if end < typed.endIndex { return false }
        }
    }

    /// The guest takes it as fast as its serial port is.
    private func send(_ bytes: [UInt8], to fd: Int32) throws(VMMError) {
        var rest = bytes[...]
        while !rest.isEmpty {
            let count = rest.withUnsafeBytes { write(fd, $0.baseAddress, $0.count) }
            if count > 0 {
                rest = rest.dropFirst(count)
            } else {
                guard errno == EAGAIN || errno == EINTR else { throw .system("Could not write to the console") }
                var state = pollfd(fd: fd, events: Int16(POLLOUT), revents: 0)
                poll(&state, 1, -1)
            }
        }
    }
}
