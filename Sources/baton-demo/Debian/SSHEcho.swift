import Foundation
import ProcessSupport

/// An SSH session to a guest in which numbers go back and forth all the time: each must come back once, in order, from the
/// same shell. The next one is sent when the last has come back.
final class SSHEcho: @unchecked Sendable {
    private let process = Process()
    private let input = Pipe()
    private let output = Pipe()
    private let lock = NSLock()
    // With the lock: Foundation reads on a thread of its own.
    private var partial = Data()
    private var number = 0
    private var shell: Substring?
    private var problem: String?

    /// - Parameter ssh: what starts a program in the guest.
    init(_ ssh: [String]) throws {
        guard let path = Tool.find(ssh[0]) else { throw Failure("\(ssh[0]) was not found") }
        process.executableURL = URL(fileURLWithPath: path)
        process.arguments = ssh.dropFirst() + ["while read -r number; do echo \"$number $$ $SSH_CONNECTION\"; done"]
        process.standardInput = input
        process.standardOutput = output
        output.fileHandleForReading.readabilityHandler = { [weak self] file in self?.take(file.availableData) }
        try process.run()
        lock.withLock { send() }
    }

    deinit {
        output.fileHandleForReading.readabilityHandler = nil
        guard process.isRunning else { return }
        kill(process.processIdentifier, SIGKILL)
        process.waitUntilExit()
    }

    /// How often a number has come back.
    /// - Throws: what was wrong.
    func count() throws -> Int {
        try lock.withLock {
            if let problem { throw Failure("the SSH session: \(problem)") }
            guard process.isRunning else { throw Failure("the SSH session has ended") }
            return number
        }
    }

    private func send() { input.fileHandleForWriting.write(Data("\(number)\n".utf8)) }

    private func take(_ bytes: Data) {
        lock.withLock {
            partial += bytes
            while let end = partial.firstIndex(of: 0x0a) {
                let line = String(decoding: partial[..<end], as: UTF8.self)
                partial = Data(partial[partial.index(after: end)...])
                // The number, the shell's PID, and both ends of the connection.
                let words = line.split(separator: " ", maxSplits: 1)
                guard words.count == 2, Int(words[0]) == number, shell == nil || shell == words[1] else {
                    problem = problem ?? "'\(line)' came back for \(number)"
                    return
                }
                shell = words[1]
                number += 1
                send()
            }
        }
    }
}
