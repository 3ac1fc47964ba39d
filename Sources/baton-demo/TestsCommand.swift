import ArgumentParser
import Foundation
import ProcessSupport

/// The command that runs, for the signal handler.
nonisolated(unsafe) private var child: pid_t = 0

/// `baton-demo tests`: runs the tests, and says at the end which were skipped.
struct TestsCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "tests",
        abstract: "Runs a command that runs tests, prints its output, and then a table of what was skipped, and why.",
        discussion: "Ends with the command's status.")

    @Argument(parsing: .captureForPassthrough, help: "The command, such as: swift test -c release.")
    var command: [String]

    func run() throws {
        let words = command.first == "--" ? Array(command.dropFirst()) : command
        guard let name = words.first, let path = Tool.find(name) else {
            throw Failure("\(words.first ?? "no command"): not found")
        }
        let process = Process()
        process.executableURL = URL(fileURLWithPath: path)
        process.arguments = Array(words.dropFirst())
        let pipe = Pipe()
        process.standardOutput = pipe
        try process.run()
        // The command may be in a process group of its own, which the terminal does not reach.
        child = process.processIdentifier
        for number in [SIGINT, SIGTERM] { signal(number) { kill(child, $0) } }
        try? pipe.fileHandleForWriting.close()
        var outcomes = TestOutcomes()
        var line = Data()
        copy(pipe.fileHandleForReading.fileDescriptor, while: { process.isRunning }) { bytes in
            for byte in bytes {
                if byte != UInt8(ascii: "\n") { line.append(byte); continue }
                outcomes.read(String(decoding: line, as: UTF8.self))
                line.removeAll(keepingCapacity: true)
            }
        }
        process.waitUntilExit()
        outcomes.read(String(decoding: line, as: UTF8.self))
        outcomes.finish()
        print("\n" + outcomes.table)
        let status = process.terminationStatus
        throw ExitCode(process.terminationReason == .exit ? status : 128 + status)
    }

    /// Copies what comes from a pipe to the standard output, and shows it, until the writer has ended. Something
    /// that the writer has left behind may hold the pipe open for ever.
    private func copy(_ pipe: Int32, while isRunning: () -> Bool, show: (ArraySlice<UInt8>) -> Void) {
        var buffer = [UInt8](repeating: 0, count: 1 << 16)
        while true {
            let isLast = !isRunning()
            var state = pollfd(fd: pipe, events: Int16(POLLIN), revents: 0)
            let ready = poll(&state, 1, isLast ? 0 : 200)
            if ready < 0 && errno == EINTR { continue }
            guard ready > 0 else {
                if isLast { return }
                continue
            }
            let count = read(pipe, &buffer, buffer.count)
            if count < 0 && errno == EINTR { continue }
            guard count > 0 else { return }
            FileHandle.standardOutput.write(Data(buffer[..<count]))
            show(buffer[..<count])
        }
    }
}
