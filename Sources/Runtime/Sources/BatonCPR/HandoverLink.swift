import BatonBase
import CBaton
import Glibc

/// What a new VMM inherits to speak with the old one, which runs the guest
/// until the new one has it.
struct HandoverLink {
    /// A seqpacket socket (a stream, in a trial), by which it reports how far it is
    /// (`WatchMessages`) and gets the guest's state (`HandoverMessage`).
    var channel: Int32
    /// Goes with every message.
    var secret: UInt64
    /// Whether this process was started by somebody else, and not executed by the old VMM.
    var isAnothers = false
    /// What it takes the guest with. It comes with the guest's state: a program
    /// that reads what it inherits does not get it.
    var token: HandoverToken?

    /// The one of this process, until it has its guest.
    nonisolated(unsafe) static var ofThisProcess: HandoverLink?

    func report(_ stage: UpdateStage) { send(WatchMessages.message(secret, stage.rawValue)) }

    /// Reports why this process gives up.
    func reportFailure(_ message: String) {
        send(WatchMessages.message(secret, WatchMessages.failure, message))
    }

    private func send(_ bytes: [UInt8]) {
        _ = bytes.withUnsafeBytes { write(channel, $0.baseAddress, $0.count) }
    }

    /// Takes the guest, if the old VMM has not taken it back.
    func take() -> Bool { token?.take() == true }

    /// Whether the old VMM has taken the guest back before this one took it.
    var isTakenBack: Bool { token?.isTakenBack == true }

    /// The guest, which has been taken, is about to go on, or to end: from now on it is
    /// this process' even if that is killed.
    /// - Returns: false when the old VMM has the guest, as this process was late.
    func release() -> Bool {
        guard token?.use() == true else { return false }
        report(.committed)
        token?.close()
        // Its end says the same, should that message not have gone out. Others may have inherited it.
        if !isAnothers, MainProcess.isObserved {
            shutdown(channel, Int32(SHUT_WR))
            MainProcess.oldVMM = channel
        } else {
            shutdown(channel, Int32(SHUT_RDWR))
            close(channel)
        }
        return true
    }
}

/// Both ends of a pipe, with FD_CLOEXEC; closed by hand, as each end goes its
/// own way after a spawn.
struct Pipe {
    let reader: Int32
    let writer: Int32

    /// A pair of stream sockets, of which the reader's tells who has sent what (unix(7), SO_PASSCRED).
    init(socketThatNamesSenders: Void) throws(VMMError) {
        var ends: [Int32] = [0, 0]
        var on: Int32 = 1
        guard cbaton_socketpair(&ends) == 0,
            setsockopt(ends[0], SOL_SOCKET, SO_PASSCRED, &on, socklen_t(MemoryLayout<Int32>.size)) == 0
        else { throw .system("Could not create a pair of sockets") }
        (reader, writer) = (ends[0], ends[1])
    }

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
