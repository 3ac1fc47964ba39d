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

    init(_ link: HandoverLink) { self.link = link }

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
        link.report(.ready)
        // Whoever started the VM waits for this process.
        guard let message = try next(vm) else { Placeholder.follow() }
        // One that was passed on, and came too late there, is this process' now.
        defer { if hasPassedOn { vm.requestQuit(cause: "host-signal") } }
        guard case .state(let memfd, let token, let secret, let checkpoint) = message else {
            throw VMMError("the VMM that runs the guest has sent something else than its state")
        }
        let tokenFD = OwnedFD(adopting: token)
        HandoverLink.ofThisProcess?.token = try HandoverToken(fd: tokenFD.raw, secret: secret)
        _ = tokenFD.release()
        let stateFD = OwnedFD(adopting: memfd)
        guard lseek(stateFD.raw, 0, SEEK_SET) == 0 else { throw .system("cannot read the guest's state") }
        let bytes = try FD.readAll(stateFD.raw, limit: CprState.sizeLimit, from: "the guest's state")
        let state: CprState
        do throws(VMMError) { state = try CprState(parsing: bytes) } catch {
            throw error.prefixed("cannot use the guest's state")
        }
        var fds: [Int32] = []
        while fds.count < state.passedFDs {
            guard case .descriptors(let more)? = try next(vm) else {
                throw VMMError("the guest's state lacks descriptors")
            }
            fds += more
        }
        guard fds.count == state.passedFDs else { throw VMMError("the guest's state has too many descriptors") }
        return State(state: state, checkpoint: checkpoint, fds: fds)
    }

    /// - Returns: nil when the guest ends in the old VMM.
    private func next(_ vm: VirtualMachine) throws(VMMError) -> HandoverMessage? {
        while true {
            switch try HandoverMessage.receive(link.channel, secret: link.secret) {
            case .hello(let number): Predecessor.pid = number
            case .end: return nil
            case let message?: return message
            case nil:
                var states = [link.channel, vm.signalFD].map { pollfd(fd: $0, events: Int16(POLLIN), revents: 0) }
                _ = poll(&states, 2, -1)
                passOn(vm)
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
