import BatonBase
import CBaton
import Glibc

/// What the old VMM says to the new one over the channel. Each message is one
/// packet: the channel's secret, a letter, and what the letter stands for.
enum HandoverMessage {
    /// The first message: the old VMM's PID, in which it goes on.
    case hello(pid_t)
    /// The first message to a process that somebody else has started: the old VMM's
    /// PID, and a memfd of the CPR state. What the state names comes along in
    /// `descriptors`. Owned by the receiver.
    case introduction(pid_t, state: Int32)
    /// The guest's state: a memfd of the CPR state, the token's page and secret
    /// and, of an update in one step, a memfd of the checkpoint. Owned by the receiver.
    case state(state: Int32, token: Int32, secret: UInt64, checkpoint: Int32?)
    /// Descriptors that the new VMM has not inherited, in the order in which the
    /// state names them. Owned by the receiver.
    case descriptors([Int32])
    /// There will be no guest any more: it ends in the old VMM.
    case end

    private static let length = 9
    /// What goes with one packet.
    static let mostDescriptors = Int(CBATON_MESSAGE_FDS)

    /// What sends descriptors of any number.
    static func messages(of fds: [Int32]) -> [HandoverMessage] {
        stride(from: 0, to: fds.count, by: mostDescriptors).map {
            .descriptors(Array(fds[$0..<min($0 + mostDescriptors, fds.count)]))
        }
    }

    private var letter: UInt8 {
        switch self {
        case .hello: UInt8(ascii: "H")
        case .introduction: UInt8(ascii: "I")
        case .state: UInt8(ascii: "S")
        case .descriptors: UInt8(ascii: "D")
        case .end: UInt8(ascii: "E")
        }
    }

    /// Sends it without waiting: there is room for what an update has to say.
    func send(_ channel: Int32, secret: UInt64) throws(VMMError) {
        guard transmit(channel, secret) else { throw .system("cannot hand the guest's state over") }
    }

    /// Sends it if there is room for it.
    /// - Returns: false when there is none, before the receiver has read something.
    func sendIfPossible(_ channel: Int32, secret: UInt64) throws(VMMError) -> Bool {
        if transmit(channel, secret) { return true }
        // Too many descriptors on their way are of the same kind.
        guard [EAGAIN, ETOOMANYREFS].contains(errno) else { throw .system("cannot hand the guest's state over") }
        return false
    }

    /// - Returns: false and errno when it was not sent.
    private func transmit(_ channel: Int32, _ secret: UInt64) -> Bool {
        var bytes = WatchMessages.message(secret, letter)
        var fds: [Int32] = []
        switch self {
        case .hello(let pid): bytes += HandoverMessage.bytes(UInt64(pid))
        case .introduction(let pid, let state):
            bytes += HandoverMessage.bytes(UInt64(pid))
            fds = [state]
        case .state(let state, let token, let tokenSecret, let checkpoint):
            bytes += HandoverMessage.bytes(tokenSecret)
            fds = [state, token] + (checkpoint.map { [$0] } ?? [])
        case .descriptors(let list): fds = list
        case .end: break
        }
        return cbaton_send_fds(channel, bytes, bytes.count, fds, fds.count, 0) == bytes.count
    }

    /// Whether the next packet looks like an `introduction`; it stays to be received.
    static func isIntroduction(nextOn channel: Int32) -> Bool {
        var bytes = [UInt8](repeating: 0, count: 64)
        let count = recv(channel, &bytes, bytes.count, Int32(MSG_PEEK) | Int32(MSG_DONTWAIT))
        return count == length + 8 && bytes[length - 1] == UInt8(ascii: "I")
    }

    /// Takes the `introduction`, which tells the channel's secret.
    static func receiveIntroduction(
        _ channel: Int32
    ) throws(VMMError) -> (pid: pid_t, state: Int32, secret: UInt64) {
        var bytes = [UInt8](repeating: 0, count: 8)
        guard recv(channel, &bytes, bytes.count, Int32(MSG_PEEK) | Int32(MSG_DONTWAIT)) == 8 else {
            throw VMMError("the VMM that hands its guest over did not introduce itself")
        }
        let secret = bytes.reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
        guard case .introduction(let pid, let state)? = try receive(channel, secret: secret) else {
            throw VMMError("the VMM that hands its guest over did not introduce itself")
        }
        return (pid, state, secret)
    }

    /// Takes the next message.
    /// - Returns: nil when there is none yet.
    /// - Throws: an error when the other side is gone, or what came is no message.
    static func receive(_ channel: Int32, secret: UInt64) throws(VMMError) -> HandoverMessage? {
        var bytes = [UInt8](repeating: 0, count: 64)
        var fds = [Int32](repeating: -1, count: mostDescriptors)
        var count: Int32 = 0
        let got = retryingInterrupts {
            cbaton_receive_fds(channel, &bytes, bytes.count, &fds, &count, Int32(MSG_DONTWAIT))
        }
        if got < 0, isTransientFailure() { return nil }
        guard got > 0 else { throw VMMError("the VMM that runs the guest has given this one up, or has ended") }
        guard count >= 0 else {
            throw VMMError(
                "descriptors that the VMM which runs the guest has sent could not be taken: too few may be allowed here "
                    + "(RLIMIT_NOFILE)")
        }
        let received = Array(fds.prefix(Int(count)))
        if let message = HandoverMessage(bytes[..<got], received, secret: secret) { return message }
        for fd in received { close(fd) }
        throw VMMError("something that is no message of a VMM came over the channel of the update")
    }

    private static func bytes(_ number: UInt64) -> [UInt8] {
        withUnsafeBytes(of: number.littleEndian) { Array($0) }
    }

    private init?(_ bytes: ArraySlice<UInt8>, _ fds: [Int32], secret: UInt64) {
        guard bytes.count >= HandoverMessage.length,
            bytes.starts(with: WatchMessages.message(secret, 0).dropLast())
        else { return nil }
        let rest = bytes.dropFirst(HandoverMessage.length)
        let number = rest.reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
        switch bytes[bytes.startIndex + HandoverMessage.length - 1] {
        case UInt8(ascii: "H"):
            guard rest.count == 8, fds.isEmpty, (1...UInt64(Int32.max)).contains(number) else { return nil }
            self = .hello(pid_t(number))
        case UInt8(ascii: "I"):
            guard rest.count == 8, fds.count == 1, (1...UInt64(Int32.max)).contains(number) else { return nil }
            self = .introduction(pid_t(number), state: fds[0])
        case UInt8(ascii: "S"):
            guard rest.count == 8, fds.count == 2 || fds.count == 3 else { return nil }
            self = .state(
                state: fds[0], token: fds[1], secret: number, checkpoint: fds.count == 3 ? fds[2] : nil)
        case UInt8(ascii: "D"):
            guard rest.isEmpty, !fds.isEmpty else { return nil }
            self = .descriptors(fds)
        case UInt8(ascii: "E"):
            guard rest.isEmpty, fds.isEmpty else { return nil }
            self = .end
        default: return nil
        }
    }
}
