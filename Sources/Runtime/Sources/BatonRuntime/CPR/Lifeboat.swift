import CBaton
import Glibc

/// What takes the guest back when a successor fails before it owns it.
///
/// A fork of the VMM, made just before the exec, which sleeps while the
/// successor starts. It holds everything that a return needs as it was: the
/// state of every device, guest RAM (mapped, shared), every descriptor. So a
/// return loads nothing, executes nothing, and does not depend on what has
/// become of the old binary on disk. The copy costs no guest memory: shared
/// mappings are not copied.
///
/// Who owns the guest is decided by one byte in a pipe, the token. The
/// successor reads it at its commit; the lifeboat reads it before it takes the
/// guest back. A pipe gives each byte out once, so never do both run the
/// guest, however their deadlines and deaths fall.
///
/// The process that is watched has the writing end of a second pipe, the watch.
/// It says there how far it is (`Stage`), or why it refuses (`F` and a text);
/// its death, however it comes, is the end of file.
enum Lifeboat {
    /// What the successor inherits.
    struct Link {
        /// Reading end of the token pipe.
        var token: Int32
        /// Writing end of the watch pipe.
        var watch: Int32
    }

    /// Which of the two processes `launch` returned in.
    enum Side {
        /// The process that is about to be replaced.
        case successor(Link, lifeboat: pid_t)
        /// The copy, after the successor has failed; the guest is ours again.
        case rolledBack(reason: String)
    }

    /// How far the update is. Each stage but `waiting` has the time limit, from
    /// when it was told.
    enum Stage: UInt8 {
        /// The VMM that made the copy collects its state: parts and modules may
        /// do what they like in it.
        case saving = 0x53  // S
        /// The successor has been executed, and builds its machine.
        case starting = 0x58  // X
        /// The machine stands, and a client is to say `cpr-load`, when it likes.
        case waiting = 0x52  // R
        /// The devices get their state.
        case loading = 0x4c  // L
        /// A trial run got as far as to the commit.
        case passed = 0x50  // P
    }

    /// In the copy: whether the successor that failed had answered the
    /// monitors' clients in the place of this process.
    nonisolated(unsafe) private(set) static var successorStood = false
    /// In the copy: called when the successor stands, for what must end then.
    nonisolated(unsafe) static var whenSuccessorStands: (() -> Void)?

    /// Makes the copy. Returns at once in this process; in the copy, only when
    /// the guest has to be taken back.
    /// - Parameter limit: nanoseconds that each stage may take.
    static func launch(limit: Int64) throws(VMMError) -> Side {
        successorStood = false
        let token = try Pipe()
        let watch: Pipe
        do throws(VMMError) {
            watch = try Pipe()
            // Whoever comes second finds the pipe empty, and must not wait.
            try FD.setNonBlocking(token.reader, true)
            try FD.writeAll(token.writer, [1], to: "the token pipe")
        } catch {
            token.close()
            throw error
        }
        let ancestor = cbaton_pidfd_open(getpid())
        let child = ancestor < 0 ? -1 : cbaton_fork()
        guard child >= 0 else {
            let failure = VMMError.system("cannot watch over the update")
            if ancestor >= 0 { close(ancestor) }
            token.close()
            watch.close()
            throw failure
        }
        close(token.writer)
        if child > 0 {
            close(watch.reader)
            close(ancestor)
            return .successor(Link(token: token.reader, watch: watch.writer), lifeboat: child)
        }
        // From here on we are the copy. The watch's writing end must be the
        // successor's alone, or its death would not show.
        close(watch.writer)
        let reason = wait(watch: watch.reader, limit: limit)
        guard take(token: token.reader) else { _exit(0) }
        end(ancestor)
        close(ancestor)
        close(token.reader)
        close(watch.reader)
        return .rolledBack(reason: reason)
    }

    /// The exec failed: the copy is told that it is not needed.
    static func recall(_ link: Link, lifeboat: pid_t) {
        _ = take(token: link.token)
        release(link)
        var status: Int32 = 0
        _ = retryingInterrupts { waitpid(lifeboat, &status, 0) }
    }

    static func release(_ link: Link) {
        close(link.token)
        close(link.watch)
    }

    /// Takes the token, if the other side has not.
    static func take(token: Int32) -> Bool {
        var byte: UInt8 = 0
        return retryingInterrupts { read(token, &byte, 1) } == 1
    }

    // MARK: In the copy

    /// Waits until the watched process dies, refuses, or is too late.
    /// - Returns: which, as a sentence.
    private static func wait(watch: Int32, limit: Int64) -> String {
        var messages = WatchMessages(stage: .saving)
        var deadline = EventLoop.now + limit
        while true {
            let left = messages.stage == .waiting ? -1 : max(0, deadline - EventLoop.now)
            var state = pollfd(fd: watch, events: Int16(POLLIN), revents: 0)
            let ready = poll(&state, 1, left < 0 ? -1 : Int32(min(left / 1_000_000 + 1, 1 << 30)))
            if ready < 0 && errno == EINTR { continue }
            if ready == 0 {
                if EventLoop.now < deadline { continue }
                return messages.tooLate(limit: limit)
            }
            guard messages.receive(from: watch) else { break }
            if messages.hasWaited, !successorStood {
                successorStood = true
                whenSuccessorStands?()
            }
            deadline = EventLoop.now + limit
        }
        return messages.ended
    }

    /// Makes sure that the process that was to take over is gone.
    private static func end(_ pidfd: Int32) {
        cbaton_pidfd_send_signal(pidfd, SIGKILL)
        var state = pollfd(fd: pidfd, events: Int16(POLLIN), revents: 0)
        while poll(&state, 1, -1) < 0 && errno == EINTR {}
    }

    // MARK: In the watched process

    static func report(_ link: Link, _ stage: Stage) { say(link, [stage.rawValue]) }

    /// Says why this process gives up.
    static func reportFailure(_ link: Link, _ message: String) {
        say(link, [WatchMessages.failure] + message.utf8.prefix(WatchMessages.textLimit))
    }

    private static func say(_ link: Link, _ bytes: [UInt8]) {
        _ = bytes.withUnsafeBytes { write(link.watch, $0.baseAddress, $0.count) }
    }
}

/// What a watched process has said.
struct WatchMessages {
    static let failure = UInt8(ascii: "F")
    static let textLimit = 2048

    private(set) var stage: Lifeboat.Stage
    /// Whether the stage was `waiting` at any time: several may be read at once.
    private(set) var hasWaited = false
    private var text: [UInt8]?

    init(stage: Lifeboat.Stage) { self.stage = stage }

    /// Why the process refuses; nil as long as it does not.
    var refusal: String? { text.map { String(decoding: $0, as: UTF8.self) } }

    /// Reads what there is.
    /// - Returns: false at the end: the process is gone, or babbles.
    mutating func receive(from watch: Int32) -> Bool {
        var buffer = [UInt8](repeating: 0, count: 512)
        let count = retryingInterrupts { read(watch, &buffer, buffer.count) }
        if count < 0 && errno == EAGAIN { return true }
        guard count > 0 else { return false }
        for byte in buffer[..<count] {
            if text != nil {
                text?.append(byte)
            } else if byte == WatchMessages.failure {
                text = []
            } else if let next = Lifeboat.Stage(rawValue: byte) {
                stage = next
                if next == .waiting { hasWaited = true }
            }
        }
        return text.map { $0.count <= WatchMessages.textLimit } ?? true
    }

    /// The end of the process, as a sentence.
    var ended: String {
        if let refusal { return "the new VMM refused: \(refusal)" }
        return switch stage {
        case .saving: "the VMM ended while it saved its state"
        case .starting: "the new VMM ended during its start"
        case .waiting, .loading, .passed: "the new VMM ended before it took the guest over"
        }
    }

    /// The stage has lasted longer than `limit` nanoseconds, as a sentence.
    func tooLate(limit: Int64) -> String {
        let span = "within \(limit / 1_000_000) ms"
        return switch stage {
        case .saving: "the state was not saved \(span): a device or a module hangs"
        case .starting: "the new VMM did not start \(span)"
        case .waiting, .loading, .passed: "the new VMM did not load the guest's state \(span)"
        }
    }
}

/// Both ends of a pipe, with FD_CLOEXEC; closed by hand, as each end goes its
/// own way after a fork or spawn.
struct Pipe {
    let reader: Int32
    let writer: Int32

    init() throws(VMMError) {
        var ends: [Int32] = [0, 0]
        guard pipe(&ends) == 0 else { throw .system("Could not create a pipe") }
        (reader, writer) = (ends[0], ends[1])
        for fd in ends { _ = fcntl(fd, F_SETFD, FD_CLOEXEC) }
    }

    func close() {
        Glibc.close(reader)
        Glibc.close(writer)
    }
}
