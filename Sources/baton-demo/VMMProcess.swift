import Foundation
import HarnessSystem
import ProcessSupport

/// The VMM, as a child with pipes for its console. An exec in the child keeps
/// the pipes and the process ID.
final class VMMProcess {
    /// Stays over an update; a VMM that has taken its guest back is another process.
    private(set) var pid: pid_t
    /// Our end of the guest console's input.
    let consoleInput: Int32
    /// Our end of the guest console's output, non-blocking.
    let consoleOutput: Int32
    /// The file that takes the VMM's own messages.
    let log: String
    private var status: Int32?

    /// Starts `arguments`, with standard error going to the file `log`.
    init(_ arguments: [String], log: String) throws {
        self.log = log
        // A VMM that takes its guest back is a child of the one that has ended.
        guard harness_adopt_orphans() == 0 else { throw Failure.system("cannot adopt processes") }
        var input: [Int32] = [-1, -1], output: [Int32] = [-1, -1]
        guard pipe(&input) == 0, pipe(&output) == 0 else {
            throw Failure.system("cannot make a pipe")
        }
        for end in input + output { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
        // Not shared with the child: the flag would be its end's as well if it were the same end.
        _ = fcntl(output[0], F_SETFL, O_NONBLOCK)

        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_adddup2(&actions, input[0], 0)
        posix_spawn_file_actions_adddup2(&actions, output[1], 1)
        posix_spawn_file_actions_addopen(&actions, 2, log, O_WRONLY | O_CREAT | O_APPEND, 0o644)

        // A group of its own: an interrupt from the terminal is for us to handle.
        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETPGROUP))

        var argv: [UnsafeMutablePointer<CChar>?] = arguments.map { strdup($0) }
        argv.append(nil)
        defer { argv.forEach { free($0) } }
        var child: pid_t = 0
        let error = posix_spawn(&child, arguments[0], &actions, &attributes, argv, environ)
        close(input[0])
        close(output[1])
        guard error == 0 else {
            throw Failure("cannot start \(arguments[0]): \(String(cString: strerror(error)))")
        }
        pid = child
        consoleInput = input[1]
        consoleOutput = output[0]
    }

    deinit {
        end()
        close(consoleInput)
        close(consoleOutput)
    }

    /// The guest was taken back, by the process `pid`; the one before is gone.
    func moved(to pid: pid_t) {
        guard pid != self.pid else { return }
        end()
        (self.pid, status) = (pid, nil)
    }

    var isRunning: Bool {
        if status != nil { return false }
        var value: Int32 = 0
        if waitpid(pid, &value, WNOHANG) == pid { status = value }
        return status == nil
    }

    /// What the VMM passed to exit, once it ended by itself.
    var exitStatus: Int32? {
        guard !isRunning, let status, status & 0x7f == 0 else { return nil }
        return status >> 8 & 0xff
    }

    /// Kills the VMM if it still runs.
    func end() {
        guard isRunning else { return }
        kill(pid, SIGKILL)
        var value: Int32 = 0
        while waitpid(pid, &value, 0) < 0, errno == EINTR {}
        status = value
    }

    /// How the VMM ended and the last it said, for an error message.
    func epitaph() -> String {
        var text = "the VMM (PID \(pid)) "
        if let status {
            let signal = status & 0x7f
            text += signal == 0 ? "ended with status \(status >> 8 & 0xff)" : "was killed by signal \(signal)"
        } else {
            text += "runs"
        }
        let messages = (try? String(contentsOfFile: log, encoding: .utf8)) ?? ""
        let tail = messages.split(separator: "\n").suffix(10)
        return tail.isEmpty ? text : text + "; its last messages:\n" + tail.joined(separator: "\n")
    }
}
