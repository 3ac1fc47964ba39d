import BatonBase
import CBaton
import Glibc

/// The process that was started as the VM, when the guest goes on in a child of it:
/// a new VMM that refuses stays as that, so that a shell, a terminal, a service manager
/// or a namespace keeps its process (`placeholder.c`).
///
/// A VM has one at most. Both VMMs of an update below one are its children: it follows
/// whichever has the guest, so that nothing grows however many updates fail.
enum Placeholder {
    /// The one of this VM; 0 when there has been none.
    nonisolated(unsafe) static var known: pid_t = 0
    /// In a new VMM: whether something has asked this process to end.
    nonisolated(unsafe) static var isToEnd: () -> Bool = { false }
    /// Nanoseconds in which an old VMM says its PID: it has when the exec is done.
    private static let patience: Int64 = 1_000_000_000

    /// The one of this VM, this process' parent; nil when there is none, or it has been killed.
    static var current: pid_t? { known > 0 && getppid() == known ? known : nil }

    /// In a new VMM, before anything that may end it: whatever ends it in order, and before it owns the guest, is
    /// giving up.
    static func prepare(_ placeholder: pid_t?) {
        known = placeholder ?? 0
        atexit { CprController.giveUp(VMMError("it ended, and gave no reason")) }
    }

    /// What is left of this new VMM, which does not get the guest, stays in its place. Returns when there is
    /// nothing to stay for: the old VMM is no child of this process, which somebody else may have started, or both
    /// have a placeholder above them.
    static func stay(_ link: HandoverLink) {
        // A trial's channel is a stream: nobody says a PID there, and the process is in nobody's place.
        guard !link.isAnothers, current == nil,
            DescriptorKind.option(link.channel, SO_TYPE) == Int32(SOCK_SEQPACKET.rawValue),
            let vmm = Predecessor.pid ?? hear(link)
        else { return }
        guard cbaton_is_child(vmm) != 0 || getpid() == 1 else { return }
        // It has come to this process, and is the guest's.
        if isToEnd() { kill(vmm, SIGTERM) }
        cbaton_become_placeholder(vmm, link.channel)
    }

    /// The guest ends in the old VMM, and this process as that does.
    static func follow() -> Never {
        guard current == nil, let vmm = Predecessor.pid else { _exit(0) }
        cbaton_become_placeholder(vmm, -1)
    }

    private static func hear(_ link: HandoverLink) -> pid_t? {
        let deadline = EventLoop.now + patience
        while true {
            do throws(VMMError) {
                switch try HandoverMessage.receive(link.channel, secret: link.secret) {
                case .hello(let pid): return pid
                case nil: break
                default: return nil
                }
            } catch { return nil }
            guard FD.awaitInput(link.channel, until: deadline) else { return nil }
        }
    }

    /// In the old VMM, which is about to end: the guest is another process'.
    static func leave() { if let current { cbaton_tell_placeholder(current, getpid(), 0) } }
}
