import BatonBase
import BatonMachine
import CBaton
import Glibc

/// The old VMM of an update, as the new one sees it: it runs the guest, and hands
/// its state over when this process is ready.
///
/// Main thread only.
final class Predecessor {
    /// Its PID, as soon as it has said that.
    nonisolated(unsafe) static var pid: pid_t?
    private let link: HandoverLink
    private var hasPassedOn = false
    /// Until when, as of CLOCK_MONOTONIC in nanoseconds, it is worth a processor not to sleep.
    private var awakeUntil: Int64 = 0

    /// The old VMM sends its state at once. To wake from sleep takes as long as to load it, on a processor that sleeps too.
    private static let awakeTime: Int64 = 2_000_000

    init(_ link: HandoverLink) { self.link = link }

    /// Nanoseconds that the old VMM may take for what follows its introduction.
    private static let introductionLimit: Int64 = 10_000_000_000

    /// Takes the CPR state that the old VMM sends, as this process has inherited nothing.
    /// From then on the old one is told why this process fails.
    /// - Parameter channel: a connected socket with something to be read; owned by the update from then on.
    static func introduction(_ channel: Int32) throws(VMMError) -> CprState {
        let message: (pid: pid_t, state: Int32, secret: UInt64)
        do throws(VMMError) {
            guard DescriptorKind.isPacketConnection(channel) else {
                throw VMMError("the mode gave no connected socket of type SOCK_SEQPACKET, but fd \(channel)")
            }
            let deadline = EventLoop.now + introductionLimit
            try awaitInput(channel, until: deadline)
            message = try HandoverMessage.receiveIntroduction(channel)
        } catch {
            close(channel)
            throw error
        }
        let link = HandoverLink(channel: channel, secret: message.secret, isAnothers: true)
        HandoverLink.ofThisProcess = link
        let stateFD = OwnedFD(adopting: message.state)
        var state = try parse(stateFD.raw)
        let deadline = EventLoop.now + introductionLimit
        let fds = try descriptors(of: state, "the CPR state") { () throws(VMMError) -> HandoverMessage? in
            while true {
                if let next = try HandoverMessage.receive(channel, secret: message.secret) { return next }
                try awaitInput(channel, until: deadline)
            }
        }
        guard state.isSent else { throw VMMError("the CPR state is for a process that inherits it") }
        state.adopt(fds)
        state.link = link
        return state
    }

    private static func awaitInput(_ channel: Int32, until deadline: Int64) throws(VMMError) {
        guard FD.awaitInput(channel, until: deadline) else {
            throw VMMError("the CPR state did not come within \(introductionLimit / 1_000_000) ms")
        }
    }

    private static func parse(_ fd: Int32) throws(VMMError) -> CprState {
        guard lseek(fd, 0, SEEK_SET) == 0 else { throw .system("cannot read the guest's state") }
        let bytes = try FD.readAll(fd, limit: CprState.sizeLimit, from: "the guest's state")
        do throws(VMMError) { return try CprState(parsing: bytes) } catch {
            throw error.prefixed("cannot use the guest's state")
        }
    }

    /// Takes the descriptors that go along with a state.
    /// - Parameters:
    ///   - name: the state, as messages have it.
    ///   - next: waits for the next message; nil when there is none any more.
    private static func descriptors(
        of state: CprState, _ name: String, next: () throws(VMMError) -> HandoverMessage?
    ) throws(VMMError) -> [Int32] {
        var fds: [Int32] = []
        while fds.count < state.passedFDs {
            guard case .descriptors(let more)? = try next() else { throw VMMError("\(name) lacks descriptors") }
            fds += more
        }
        guard fds.count == state.passedFDs else { throw VMMError("\(name) has too many descriptors") }
        return fds
    }

    /// What changes hands.
    struct State {
        let state: CprState
        /// A memfd, of an update in one step. Owned by whoever gets it.
        let checkpoint: Int32?
        /// What this process has not inherited, in the state's order.
        let fds: [Int32]
    }

    /// Says that this process is ready, and waits for the guest's state.
    /// A signal to end that comes meanwhile is the old VMM's, which has the guest.
    /// - Throws: when there is none.
    func awaitState(_ vm: VirtualMachine) throws(VMMError) -> State {
        if cbaton_processors() > 1 { awakeUntil = EventLoop.now + Predecessor.awakeTime }
        link.report(.ready)
        guard let message = try next(vm) else {
            guard !link.isAnothers else { throw VMMError("the guest has ended in the VMM that ran it") }
            // Whoever started the VM waits for this process.
            Placeholder.follow()
        }
        // One that was passed on, and came too late there, is this process' now.
        defer { if hasPassedOn { vm.requestQuit(cause: "host-signal") } }
        guard case .state(let memfd, let token, let secret, let checkpoint) = message else {
            throw VMMError("the VMM that runs the guest has sent something else than its state")
        }
        let tokenFD = OwnedFD(adopting: token)
        HandoverLink.ofThisProcess?.token = try HandoverToken(fd: tokenFD.raw, secret: secret)
        _ = tokenFD.release()
        let stateFD = OwnedFD(adopting: memfd)
        let state = try Predecessor.parse(stateFD.raw)
        let fds = try Predecessor.descriptors(of: state, "the guest's state") { () throws(VMMError) in try next(vm) }
        return State(state: state, checkpoint: checkpoint, fds: fds)
    }

    /// - Returns: nil when the guest ends in the old VMM.
    private func next(_ vm: VirtualMachine) throws(VMMError) -> HandoverMessage? {
        while true {
            switch try HandoverMessage.receive(link.channel, secret: link.secret) {
            case .hello(let number): Predecessor.pid = number
            case .end: return nil
            case let message?: return message
            case nil where EventLoop.now < awakeUntil: cbaton_pause()
            case nil:
                var states = [link.channel, vm.signalFD].map { pollfd(fd: $0, events: Int16(POLLIN), revents: 0) }
                _ = poll(&states, 2, -1)
                if link.isAnothers {
                    vm.takeSignals()
                    if vm.isEnding { throw VMMError("the new VMM was told to end") }
                } else {
                    passOn(vm)
                }
            }
        }
    }

    private func passOn(_ vm: VirtualMachine) {
        vm.takeSignals()
        guard vm.isEnding, let pid = Predecessor.pid else { return }
        vm.forgetEnd()
        hasPassedOn = true
        kill(pid, SIGTERM)
    }
}
