import Foundation

/// Connects the terminal to the guest's console until Ctrl-A X, the end of
/// standard input, or the end of the VMM.
final class InteractiveConsole {
    private let session: Session
    private var escaped = false

    init(session: Session) { self.session = session }

    func run() {
        var saved = termios()
        let isTerminal = tcgetattr(0, &saved) == 0
        if isTerminal {
            var raw = saved
            cfmakeraw(&raw)
            tcsetattr(0, TCSANOW, &raw)
        }
        defer { if isTerminal { tcsetattr(0, TCSANOW, &saved) } }
        session.console.onBytes = { FileHandle.standardOutput.write(Data($0)) }
        session.console.type([0x0d])  // brings the prompt

        while session.process.isRunning, !session.console.isClosed {
            var descriptors = [
                pollfd(fd: 0, events: Int16(POLLIN), revents: 0),
                pollfd(fd: session.console.descriptor, events: Int16(POLLIN), revents: 0),
            ]
            poll(&descriptors, 2, 200)
            session.console.drain()
            // QMP events are not for us, but the socket must not fill up.
            _ = try? session.qmp?.next()
            if descriptors[0].revents != 0, !forwardInput() { break }
        }
        print("\r")
    }

    /// Returns false when the user wants to leave.
    private func forwardInput() -> Bool {
        var bytes = [UInt8](repeating: 0, count: 1024)
        let count = read(0, &bytes, bytes.count)
        if count < 0 { return errno == EINTR }
        if count == 0 { return false }
        var typed: [UInt8] = []
        for byte in bytes[..<count] {
            if escaped {
                escaped = false
                if byte == UInt8(ascii: "x") || byte == UInt8(ascii: "X") { return false }
                if byte == 1 { typed.append(byte) }
            } else if byte == 1 {
                escaped = true
            } else {
                typed.append(byte)
            }
        }
        session.console.type(typed)
        return true
    }
}
