import BatonBase
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
/// Who owns the guest is decided by a word that both share (`HandoverToken`).
/// The process that is watched has the writing end of a pipe, the watch. It
/// reports there how far it is (`UpdateStage`), or why it refuses. Its death,
/// however it comes, shows on its pidfd, and as the pipe's end.
enum Lifeboat {
    /// What the successor inherits.
    struct Link {
        /// The page of the token.
        var token: Int32
        /// Writing end of the watch pipe.
        var watch: Int32
        /// The token's secret, which every message carries.
        var secret: UInt64
    }

    /// The copy, as the process that made it knows it.
    struct Guardian {
        let token: HandoverToken
        let watch: Int32
        let pid: pid_t
        var link: Link { Link(token: token.fd, watch: watch, secret: token.secret) }
    }

    /// Which of the two processes `launch` returned in.
    enum Side {
        /// The process that is about to be replaced.
        case successor(Guardian)
        /// The copy, after the successor has failed; the guest is ours again.
        case rolledBack(reason: String)
    }

    /// In the copy: whether the successor that failed had answered the
    /// monitors' clients in the place of this process.
    nonisolated(unsafe) private(set) static var successorStood = false
    /// In the copy: called when the successor stands, for what must end then.
    nonisolated(unsafe) static var whenSuccessorStands: (() -> Void)?
    /// In the copy: called when the guest is its own again, while the process
    /// that failed may still be there.
    nonisolated(unsafe) static var whenTakenBack: (() -> Void)?
    /// Nanoseconds that a process which has been killed may take to end. It
    /// runs no more of its code, so nothing depends on it.
    private static let endLimit: Int64 = 1_000_000_000

    /// Makes the copy. Returns at once in this process; in the copy, only when
    /// the guest has to be taken back.
    /// - Parameters:
    ///   - limit: nanoseconds that each stage may take.
    ///   - mayWait: whether the successor may wait for its client, see `UpdateStage`.
    static func launch(limit: Int64, mayWait: Bool) throws(VMMError) -> Side {
        successorStood = false
        let token = try HandoverToken()
        let watch: Pipe
        do throws(VMMError) {
            watch = try Pipe()
            try FD.setNonBlocking(watch.reader, true)
        } catch {
            token.close()
            throw error
        }
        let before = getpid()
        let ancestor = cbaton_pidfd_open(before)
        let child = ancestor < 0 ? -1 : cbaton_fork()
        guard child >= 0 else {
            let failure = VMMError.system("cannot watch over the update")
            if ancestor >= 0 { close(ancestor) }
            token.close()
            watch.close()
            throw failure
        }
        if child > 0 {
            close(watch.reader)
            close(ancestor)
            return .successor(Guardian(token: token, watch: watch.writer, pid: child))
        }
        // From here on we are the copy. The watch's writing end must be the
        // successor's alone, or its end would not show.
        close(watch.writer)
        // The end of a session's leader is a SIGHUP for its terminal's processes.
        var mask = sigset_t()
        block(SIGHUP, saving: &mask)
        var messages = WatchMessages(stage: .saving, secret: token.secret, mayWait: mayWait)
        let reason = wait(watch: watch.reader, process: ancestor, limit: limit, &messages)
        guard token.takeBack() else { _exit(0) }
        whenTakenBack?()
        let stops = LostSession.leave(of: before)
        // PID 1 cannot be ended by a process of its namespace; it knows how to stay.
        if before != 1 { end(ancestor) }
        LostSession.forgetHangup(&mask)
        // An operator's stop that the process which failed had not come to.
        for number in stops { raise(number) }
        close(ancestor)
        token.close()
        close(watch.reader)
        return .rolledBack(reason: reason)
    }

    private static func block(_ number: Int32, saving mask: inout sigset_t) {
        var one = sigset_t()
        sigemptyset(&one)
        sigaddset(&one, number)
        sigprocmask(SIG_BLOCK, &one, &mask)
    }

    /// The exec failed, or the step has ended: there is no need for the copy.
    /// - Returns: false when the copy cannot be waited for now.
    static func recall(_ guardian: Guardian) -> Bool {
        // The copy was faster, and is about to end this process.
        guard guardian.token.take() else { while true { pause() } }
        close(guardian.watch)
        guardian.token.close()
        // It has nothing to do any more, and may not be able to see that.
        kill(guardian.pid, SIGKILL)
        return cbaton_await_child(guardian.pid, endLimit) != 0
    }

    // MARK: In the copy

    /// Waits until the watched process dies, refuses, is too late, or has the guest.
    /// - Returns: which, as a sentence.
    private static func wait(
        watch: Int32, process: Int32, limit: Int64, _ messages: inout WatchMessages
    ) -> String {
        var deadline = EventLoop.now + limit
        while messages.stage != .committed {
            let isPatient = messages.stage == .waiting && messages.refusal == nil
            let left = isPatient ? -1 : max(0, deadline - EventLoop.now)
            var states = [watch, process].map { pollfd(fd: $0, events: Int16(POLLIN), revents: 0) }
            let ready = poll(&states, 2, left < 0 ? -1 : Int32(min(left / 1_000_000 + 1, 1 << 30)))
            if ready < 0 && errno == EINTR { continue }
            if ready == 0 {
                if EventLoop.now < deadline { continue }
                return messages.refusal == nil ? messages.tooLate(limit: limit) : messages.ended
            }
            // What it said last comes before its end, which the pipe may not
            // show: somebody else may have inherited that.
            let (stage, hadRefused) = (messages.stage, messages.refusal != nil)
            guard states[0].revents != 0, messages.receive(from: watch) else { break }
            if messages.hasWaited, !successorStood {
                successorStood = true
                whenSuccessorStands?()
            }
            if messages.stage != stage { deadline = EventLoop.now + limit }
            if messages.refusal != nil, !hadRefused { deadline = EventLoop.now + endLimit }
        }
        return messages.ended
    }

    /// Makes sure that the process that was to take over runs no more.
    private static func end(_ pidfd: Int32) {
        cbaton_pidfd_send_signal(pidfd, SIGKILL)
        let deadline = EventLoop.now + endLimit
        while true {
            var state = pollfd(fd: pidfd, events: Int16(POLLIN), revents: 0)
            let left = deadline - EventLoop.now
            if left > 0, poll(&state, 1, Int32(left / 1_000_000 + 1)) == 0 { continue }
            if state.revents != 0 { return }
            guard left > 0 else {
                return Report.warning("the process that was to take over has been killed, and does not end yet")
            }
        }
    }

    // MARK: In the watched process

    static func report(_ link: Link, _ stage: UpdateStage) {
        send(link, WatchMessages.message(link.secret, stage.rawValue))
    }

    /// Reports why this process gives up.
    static func reportFailure(_ link: Link, _ message: String) {
        send(link, WatchMessages.message(link.secret, WatchMessages.failure, message))
    }

    private static func send(_ link: Link, _ bytes: [UInt8]) {
        _ = bytes.withUnsafeBytes { write(link.watch, $0.baseAddress, $0.count) }
    }

    /// Takes the guest, if the copy has not taken it back.
    static func take(_ link: Link) -> Bool {
        guard let token = try? HandoverToken(fd: link.token, secret: link.secret) else { return false }
        defer { token.unmap() }
        return token.take()
    }

    /// The guest has been taken: the copy is to end.
    static func release(_ link: Link) {
        // Not by the pipe's end alone: others may have inherited that.
        report(link, .committed)
        close(link.token)
        close(link.watch)
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
