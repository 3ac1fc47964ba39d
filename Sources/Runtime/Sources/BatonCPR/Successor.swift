import BatonBase
import BatonMachine
import CBaton
import Glibc

/// The new VMM of an update, as the old one sees it.
///
/// The process that is updated executes the new VMM, and goes on in a child that
/// shares its memory (`cbaton_execute_beside`): so the old VMM, with everything
/// that it has, runs the guest while the new one starts. Or the new VMM is a process
/// that somebody else has started, and this one has connected to (`attach`). When it is
/// ready, the old one stops the guest, hands its state over, and waits for the commit.
/// Until then, whatever goes wrong in the new one, the old one goes on.
///
/// Who owns the guest is decided by a word that both share (`HandoverToken`). The
/// new VMM reports over a socket, the channel, how far it is (`UpdateStage`), or why
/// it refuses. Its end, however it comes, shows on its pidfd.
///
/// Main thread only.
final class Successor {
    /// Nanoseconds that a process which has been killed may take to end. It
    /// runs no more of its code, so nothing depends on it.
    private static let endLimit: Int64 = 1_000_000_000
    /// What this process does last, without its descriptors, when the guest is the new VMM's.
    var beforeEnd: (() -> Void)?
    /// Readable when somebody has told this process to end; -1 when nothing says so. Borrowed, and not read.
    var stopFD: Int32 = -1
    /// Whether the new VMM was told, as it was about to have the guest.
    private var hasPassedOnStop = false
    /// A pidfd of the process in which the last new VMM was executed; nil when
    /// nobody has looked for one. Owned.
    nonisolated(unsafe) static var executed: Int32?

    private let token: HandoverToken
    /// Goes with every message over the channel.
    private let secret: UInt64
    private var channel: Int32
    /// The new VMM's end of the channel, until it has been executed.
    private var theirs: Int32
    /// A pidfd; -1 until then, and for a process that cannot be known from here: its
    /// end shows on the channel only.
    private var process: Int32 = -1
    /// The PID of that process; 0 for one that cannot be known.
    private(set) var pid = getpid()
    /// Whether the new VMM is another process than this one was: it has been started
    /// by somebody else, who sees to its end, and this one stays when it has the guest.
    private(set) var isAnothers = false
    /// What is still to be sent before the new VMM can start, see `attach`.
    private var unsent: [HandoverMessage] = []
    /// What is sent then: the state's memfd, and copies of RAM's descriptors and of those
    /// preserved, in the state's order. They stay what they are while the guest runs
    /// on. Owned.
    private var sent: [Int32] = []
    /// Copies of the preserved descriptors that a VMM which is another's got, in the
    /// state's order; nil for one that has inherited them. Borrowed.
    private(set) var sentFDs: ArraySlice<Int32>?
    private var isClosed = false
    private var messages: WatchMessages
    /// Why a client has ended the update; nil when none has.
    private var cancellation: String?
    private var mask = sigset_t()

    /// What the new VMM is told in its CPR state.
    let link: HandoverLink

    /// Whether the new VMM, which waits for its client, has answered the
    /// monitors' clients in the place of the old one.
    var hasWaited: Bool { messages.hasWaited || (isClosed ? hadWaited : token.hasWaited) }
    /// What the token said at its end.
    private var hadWaited = false
    /// Whether it may wait for its client, see `UpdateStage`.
    let mayWait: Bool

    init(mayWait: Bool) throws(VMMError) {
        self.mayWait = mayWait
        var random: UInt64 = 0
        guard cbaton_getrandom(&random, 8) == 8 else { throw .system("cannot make a secret for the update") }
        secret = random
        token = try HandoverToken()
        var ends: [Int32] = [-1, -1]
        guard socketpair(AF_UNIX, Int32(SOCK_SEQPACKET.rawValue | SOCK_CLOEXEC.rawValue), 0, &ends) == 0 else {
            token.close()
            throw .system("cannot make the channel of the update")
        }
        (channel, theirs) = (ends[0], ends[1])
        link = HandoverLink(channel: theirs, secret: secret)
        messages = WatchMessages(stage: .starting, secret: secret, mayWait: mayWait)
        do throws(VMMError) { try FD.setNonBlocking(channel, true) } catch {
            close()
            throw error
        }
    }

    // MARK: The start

    /// Has `start` execute the new VMM.
    /// - Throws: in the same process, why there is none; in the child, when
    ///   something has to end it.
    func execute(_ start: () throws(VMMError) -> Void) throws(VMMError) {
        // The end of a session's leader is a SIGHUP for its terminal's processes.
        var one = sigset_t()
        sigemptyset(&one)
        sigaddset(&one, SIGHUP)
        sigprocmask(SIG_BLOCK, &one, &mask)
        Successor.executed = nil
        do throws(VMMError) {
            try start()
        } catch {
            guard Successor.executed == nil else { return try afterExec(failure: error) }
            sigprocmask(SIG_SETMASK, &mask, nil)
            close()
            throw error
        }
        try afterExec(failure: nil)
    }

    /// Takes the VMM at the other end of a socket for the new one.
    /// - Parameters:
    ///   - fd: a connected SOCK_SEQPACKET unix socket, non-blocking; this object's from then on.
    ///   - state: what it gets. Its descriptors are borrowed, and looked at now.
    func attach(_ fd: Int32, _ state: CprState) throws(VMMError) {
        for end in [channel, theirs] { Glibc.close(end) }
        (channel, theirs, isAnothers) = (fd, -1, true)
        messages.isAnothers = true
        pid = try HandoverChannel.peer(of: fd).pid ?? 0
        if pid > 0 {
            process = cbaton_pidfd_open(pid)
            guard process >= 0 else { throw .system("cannot watch the new VMM, process \(pid)") }
        }
        var state = state
        state.forgetExecution()
        let fds = state.passAll()
        let memfd = try state.writeMemfd().release()
        sent = [memfd]
        for fd in fds {
            let copy = fcntl(fd, F_DUPFD_CLOEXEC, 3)
            guard copy >= 0 else { throw .system("cannot hand descriptor \(fd) over") }
            sent.append(copy)
        }
        sentFDs = sent.suffix(state.fds.count)
        unsent = [.introduction(getpid(), state: memfd)] + HandoverMessage.messages(of: Array(sent.dropFirst()))
        _ = try sendRest()
    }

    /// - Returns: false when not all is sent, as there is no room for it.
    private func sendRest() throws(VMMError) -> Bool {
        while let next = unsent.first {
            guard try next.sendIfPossible(channel, secret: secret) else { return false }
            unsent.removeFirst()
        }
        return true
    }

    private func afterExec(failure: VMMError?) throws(VMMError) {
        guard !isAnothers else {
            sigprocmask(SIG_SETMASK, &mask, nil)
            return
        }
        process = Successor.executed ?? -1
        Successor.executed = nil
        Glibc.close(theirs)
        theirs = -1
        if let failure { throw giveUp(failure.message) }
        // One that has ended already is seen to have.
        do throws(VMMError) { try HandoverMessage.hello(getpid()).send(channel, secret: secret) } catch {}
    }

    /// Runs the guest until the new VMM is ready.
    /// - Parameters:
    ///   - limit: nanoseconds that its start may take.
    ///   - run: runs the guest and the loop until what it is given is true.
    /// - Throws: why it will not be, after it has been ended.
    func awaitReady(_ loop: EventLoop, limit: Int64, run: (() -> Bool) -> Void) throws(VMMError) {
        var reason: String?
        var last: EventLoop.Timer?
        /// The guest runs on for the moment in which the kernel learns how a process that says nothing has ended.
        func endsSoon(_ time: Int64) {
            last?.cancel()
            last = loop.schedule(at: EventLoop.now + time) { [unowned self] in reason = messages.ended + statusText }
        }
        do throws(VMMError) {
            try loop.watch(channel, unsent.isEmpty ? .readable : [.readable, .writable]) { [unowned self] events in
                // What it has said before its end says why.
                if events != .writable, !messages.receive(from: channel) || messages.hasStayed {
                    if saysWhyItEnds || process < 0 { return reason = messages.ended }
                    loop.unwatch(channel)
                    return endsSoon(Successor.silentEndLimit)
                }
                do throws(VMMError) {
                    if !unsent.isEmpty, try sendRest() { loop.setEvents(channel, .readable) }
                } catch {
                    reason = error.message
                }
                // The guest runs until its process has ended, or stays.
                guard messages.refusal != nil, last == nil else { return }
                last = loop.schedule(at: EventLoop.now + Successor.endLimit) { [unowned self] in
                    reason = messages.ended
                }
            }
            if process >= 0 {
                try loop.watch(process, .readable) { [unowned self] _ in
                    _ = messages.receive(from: channel)
                    if saysWhyItEnds { return reason = messages.ended }
                    loop.unwatch(process)
                    endsSoon(Successor.reapTime)
                }
            }
        } catch {
            reason = error.message
        }
        var timer: EventLoop.Timer?
        var patience = StartLimit(limit, from: EventLoop.now)
        func look() {
            timer = loop.schedule(at: patience.nextLook) { [unowned self] in
                // This process may have been the one that had no turn.
                _ = messages.receive(from: channel)
                guard messages.stage == .starting else { return }
                if messages.refusal == nil, !patience.isOver(for: pid > 0 ? pid : nil) { return look() }
                reason = messages.refusal == nil ? messages.tooLate(limit: limit) + whereabouts : messages.ended
            }
        }
        look()
        // The guest runs first.
        if pid > 0 { loop.later { [pid] in patience.begins(in: pid) } }
        // It is known already, unless a process stands in, or nothing could be said before the exec.
        if !isAnothers { loop.later { MainProcess.settle() } }
        if reason == nil { run { messages.stage != .starting || reason != nil || cancellation != nil } }
        timer?.cancel()
        last?.cancel()
        loop.unwatch(channel)
        if process >= 0 { loop.unwatch(process) }
        if let reason = reason ?? cancellation { throw giveUp(reason) }
        guard messages.stage != .ready else { return }
        leaveWhenReady()
        throw VMMError("the VMM is ending")
    }

    /// Nanoseconds that a process which has closed the channel without a word has for its end.
    private static let silentEndLimit: Int64 = 50_000_000
    /// Nanoseconds that its parent has to wait for a process that has ended: the kernel tells how it did after that.
    private static let reapTime: Int64 = 10_000_000

    private var saysWhyItEnds: Bool { messages.refusal != nil || messages.isBroken || messages.hasStayed }

    /// How the new VMM's process has ended, to follow a sentence, as far as the kernel tells (Linux 6.15).
    private var statusText: String {
        let status = process >= 0 ? cbaton_pidfd_status(process) : -1
        return status >= 0 ? ", \(WaitStatus(raw: status).text)" : ""
    }

    /// Where a new VMM that is late is, as far as the kernel tells.
    private var whereabouts: String {
        guard pid > 0, let place = ProcessFiles.whereabouts(of: pid) else { return "" }
        return " (it is \(place))"
    }

    /// Ends the update, in `awaitReady`.
    func cancel(_ reason: String) { cancellation = reason }

    // MARK: The change of hands

    /// Sends the guest's state.
    /// - Parameter fds: that the new VMM has not inherited. Borrowed, like the others.
    /// - Throws: why the new VMM does not take it.
    func send(state: Int32, checkpoint: Int32?, fds: [Int32]) throws(VMMError) {
        do throws(VMMError) { try sendAll(state, checkpoint, fds) } catch {
            _ = messages.receive(from: channel)
            throw VMMError(messages.ended)
        }
    }

    private func sendAll(_ state: Int32, _ checkpoint: Int32?, _ fds: [Int32]) throws(VMMError) {
        try HandoverMessage.state(state: state, token: token.fd, secret: token.secret, checkpoint: checkpoint)
            .send(channel, secret: secret)
        for message in HandoverMessage.messages(of: fds) { try message.send(channel, secret: secret) }
    }

    /// Waits until the new VMM has the guest. Does not return then, unless that is another's process.
    /// - Parameters:
    ///   - limit: nanoseconds until the commit, or until the new VMM waits for its client.
    ///   - start: since when, as of CLOCK_MONOTONIC in nanoseconds: the guest stands still since.
    ///   - whenItWaits: called when it does.
    /// - Returns: why the guest is this VMM's again; nil when it is the new one's.
    func awaitCommit(limit: Int64, since start: Int64, whenItWaits: () -> Void) -> VMMError? {
        let reason = wait(limit: limit, since: start, whenItWaits)
        return takeBack(reason)
    }

    /// Nanoseconds that it takes to end a new VMM that is late, and to go on with the guest: 1 to 2 ms.
    private static let wayBack: Int64 = 2_000_000

    private func wait(limit: Int64, since start: Int64, _ whenItWaits: () -> Void) -> String {
        // The way back is a part of the time that the guest stands still.
        var deadline = start + limit - min(Successor.wayBack, limit / 4)
        var hasWaited = false
        while messages.stage != .committed {
            let isPatient = messages.stage == .waiting && messages.refusal == nil
            let (stage, hadRefused) = (messages.stage, messages.refusal != nil)
            switch awaitNews(until: isPatient ? nil : deadline) {
            case .none: return messages.refusal == nil ? messages.tooLate(limit: limit) : messages.ended
            case .end: return messages.ended
            case .message: break
            }
            if messages.hasWaited, !hasWaited {
                hasWaited = true
                whenItWaits()
            }
            if messages.stage != stage, hasWaited { deadline = EventLoop.now + limit }
            if messages.refusal != nil, !hadRefused { deadline = EventLoop.now + Successor.endLimit }
        }
        return messages.ended
    }

    private enum News {
        /// Something was received: `messages` has it.
        case message
        /// Nothing more will come: the new VMM has ended, has refused, or is none.
        case end
    }

    /// Waits for what comes next of the new VMM. What it said last comes before its end.
    /// - Parameter deadline: as of CLOCK_MONOTONIC in nanoseconds; nil for none.
    /// - Returns: nil when nothing came in time.
    private func awaitNews(until deadline: Int64?) -> News? {
        while true {
            // A stop is the new VMM's from the guest's state on. It is this one's too if the guest comes back.
            let stops = isAnothers || hasPassedOnStop ? -1 : stopFD
            guard let first = FD.awaitInput(anyOf: [channel, process, stops], until: deadline) else { return nil }
            guard first == 2 else { return first == 0 && messages.receive(from: channel) ? .message : .end }
            hasPassedOnStop = true
            cbaton_pidfd_send_signal(process, SIGTERM)
        }
    }

    // MARK: The way back

    /// Nanoseconds in which a new VMM that has been ready says that it gives up: the guest stands still meanwhile.
    private static let farewellLimit: Int64 = 20_000_000

    /// Takes the guest back as this VMM cannot hand it over. The new one, which waits and is well, stays as a
    /// placeholder if the VM has none.
    /// - Returns: as `takeBack`.
    func withdraw(_ reason: String) -> VMMError? {
        if messages.refusal == nil, !isAnothers, Placeholder.current == nil, token.takeBack() {
            // It sees the end of what it waits for, and can still be heard.
            shutdown(channel, Int32(SHUT_WR))
            let deadline = EventLoop.now + Successor.farewellLimit
            while messages.refusal == nil, case .message? = awaitNews(until: deadline) {}
        }
        return takeBack(reason)
    }

    /// Takes the guest back, and ends the new VMM. Does not return when that has the guest
    /// already, unless it is another's process.
    /// - Returns: why the guest is this VMM's again; nil when it is the new one's.
    func takeBack(_ reason: String) -> VMMError? {
        guard token.takeBack() || takeBackLate() || awaitUse() else { return nil }
        return giveUp(reason)
    }

    /// Tells the new VMM, which has the guest, to end.
    func passOnStop() {
        guard process >= 0, cbaton_pidfd_send_signal(process, SIGTERM) == 0 else {
            let who = pid > 0 ? ", process \(pid)," : ""
            return Report.warning("the guest is another VMM's, which\(who) cannot be told to end from here")
        }
    }

    /// The new VMM has taken the guest, and done nothing with it in its time. It might go on
    /// with what it does as the owner, so it must be sure to be ended.
    private func takeBackLate() -> Bool {
        // It cannot be ended from within its namespace. As a placeholder it has ended what it was at.
        guard pid != 1 else { return messages.hasStayed && token.takeBackUnused() }
        guard isAnothers else { return token.takeBackUnused() }
        guard process >= 0, cbaton_pidfd_send_signal(process, 0) == 0, token.takeBackUnused() else { return false }
        cbaton_pidfd_send_signal(process, SIGKILL)
        return true
    }

    /// The guest is this VMM's: ends the new one.
    private func giveUp(_ reason: String) -> VMMError {
        defer { close() }
        // It is not ours to end: without the token it can do nothing.
        guard !isAnothers else { return VMMError("the update failed, and the guest goes on here: \(reason)") }
        if stays() {
            // It passes on what it is sent, and has, too.
            MainProcess.settle(for: pid)
            Placeholder.known = pid
            sigprocmask(SIG_SETMASK, &mask, nil)
        } else {
            endForGood()
        }
        // A command that was to execute the new VMM may have children, which have all that was inherited.
        cbaton_kill_started("\(CprState.reportVariable)=\(CprState.reportText(of: link))", pid)
        // What it said last decides who answers the client.
        while case .message? = awaitNews(until: EventLoop.now) {}
        return VMMError("the update failed and the guest was taken back: \(reason)")
    }

    /// Whether the new VMM has refused, and its process stays as a placeholder: that comes next, or its end.
    private func stays() -> Bool {
        let deadline = EventLoop.now + (messages.refusal == nil ? 0 : Successor.endLimit)
        while !messages.hasStayed, case .message? = awaitNews(until: deadline) {}
        return messages.hasStayed
    }

    /// The process that was to take over is lost, and with it, if there is no
    /// placeholder, the one that was started as the VM.
    private func endForGood() {
        if Placeholder.current == nil {
            MainProcess.settleBeforeEnd(of: pid)
            LostSession.leave()
        }
        let stops = LostSession.pendingStops(of: pid)
        // PID 1 cannot be ended by a process of its namespace; it stays if it ever comes to it.
        if pid != 1 { end() }
        LostSession.forgetHangup(&mask)
        // An operator's stop that the process which failed had not come to.
        for number in stops { raise(number) }
    }

    /// The new VMM has taken the guest, and has done something with it or is about to: nothing
    /// takes it back but that process' end, and only if that comes before.
    /// - Returns: whether it did; false only if the new VMM is another's process.
    private func awaitUse() -> Bool {
        // It may not have been able to say that it has the guest for good.
        while messages.stage != .committed, !token.isUsed {
            if !messages.hasStayed, case .message? = awaitNews(until: nil) { continue }
            if process >= 0, !messages.hasStayed {
                // Or the end of a channel which it closes last.
                var state = pollfd(fd: process, events: Int16(POLLIN), revents: 0)
                while poll(&state, 1, -1) < 0 {}
                _ = messages.receive(from: channel)
            }
            if messages.stage != .committed, token.takeBackUnused() { return true }
            break
        }
        if isAnothers { return false }
        endForNewVMM()
    }

    /// The guest is the new VMM's, which this process was before the exec.
    private func endForNewVMM() -> Never {
        // One that comes now is for the new VMM. The manager may know this process for a while.
        var stops = sigset_t()
        sigemptyset(&stops)
        for number in [SIGTERM, SIGINT] { sigaddset(&stops, number) }
        sigprocmask(SIG_BLOCK, &stops, nil)
        var isToStop = !hasPassedOnStop && FD.awaitInput(stopFD, until: EventLoop.now)
        Placeholder.leave()
        // Whoever waits for the end of a connection must not wait for what follows.
        FD.closeAll(but: [channel, process, HostAccess.socket])
        let receipt = MainProcess.handOver(to: pid)
        // The new VMM may say who is next.
        Glibc.close(channel)
        if receipt >= 0 { _ = FD.awaitInput(receipt, until: EventLoop.now + MainProcess.limit) }
        var now = timespec()
        while sigtimedwait(&stops, nil, &now) > 0 { isToStop = true }
        if isToStop { cbaton_pidfd_send_signal(process, SIGTERM) }
        // What frees our memory takes its time, beside the guest.
        setpriority(__priority_which_t(PRIO_PROCESS.rawValue), 0, 19)
        cbaton_close_range(0, ~0)
        beforeEnd?()
        _exit(0)
    }

    /// The guest has ended in this process before the new VMM was ready, which a
    /// moment is waited for.
    private func leaveWhenReady() {
        let deadline = EventLoop.now + Successor.endLimit
        while messages.stage == .starting, messages.refusal == nil {
            guard case .message? = awaitNews(until: deadline) else { break }
        }
        if messages.stage == .ready { return leave() }
        end()
        finish()
    }

    /// The guest ends in this process: the new VMM, which is ready, is to wait for
    /// that, and to end alike.
    func leave() {
        // It ends as this one does, and its end is seen by whoever has started it.
        if !isAnothers { MainProcess.settle(for: pid) }
        do throws(VMMError) { try HandoverMessage.end.send(channel, secret: secret) } catch { end() }
        finish()
    }

    private func finish() {
        if !isAnothers { sigprocmask(SIG_SETMASK, &mask, nil) }
        close()
    }

    /// Makes sure that the process that was to take over runs no more. One that is
    /// another's is not ours to end: without the token it can do nothing.
    private func end() {
        guard !isAnothers else { return }
        cbaton_pidfd_send_signal(process, SIGKILL)
        if !FD.awaitInput(process, until: EventLoop.now + Successor.endLimit) {
            Report.warning("the process that was to take over has been killed, and does not end yet")
        }
    }

    private func close() {
        guard !isClosed else { return }
        isClosed = true
        hadWaited = token.hasWaited
        token.close()
        for fd in [channel, theirs, process] + sent where fd >= 0 { Glibc.close(fd) }
    }

    deinit { close() }
}
