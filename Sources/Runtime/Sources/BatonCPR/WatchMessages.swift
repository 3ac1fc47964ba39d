import BatonBase
import CBaton
import Glibc

/// How far an update is. Each stage but `waiting` has the time limit, from when
/// it was reported.
enum UpdateStage: UInt8 {
    /// The new VMM has been executed, and builds its machine. The guest runs.
    case starting = 0x58  // X
    /// The machine stands, and is to get the guest's state.
    case ready = 0x59  // Y
    /// The machine stands, and a client is to say `cpr-load`, when it likes.
    case waiting = 0x52  // R
    /// The devices get their state.
    case loading = 0x4c  // L
    /// A trial run got as far as to the commit.
    case passed = 0x50  // P
    /// The guest is the new VMM's, or ends with it.
    case committed = 0x43  // C

    /// The stages that may follow. None comes twice, so that the time of an
    /// update has an end; but for `cpr-load`, which may be tried again.
    fileprivate func mayBeFollowed(by next: UpdateStage, mayWait: Bool) -> Bool {
        switch (self, next) {
        case (.starting, .ready), (.ready, .loading), (.waiting, .loading), (.loading, .passed): true
        // A trial has everything from the start.
        case (.starting, .loading): true
        case (.ready, .waiting), (.loading, .waiting): mayWait
        // There is nothing to commit before the machine stands.
        case (.ready, .committed), (.waiting, .committed), (.loading, .committed): true
        default: false
        }
    }
}

/// What a watched process has reported: the reader of the watch.
///
/// A message is the channel's secret in eight bytes, least significant first, and
/// a stage; or the letter F and, up to the end, why the process refuses. A zero byte
/// after that says that it stays as a placeholder.
/// Whatever else comes is not from a VMM that takes part in the update, and ends
/// that.
struct WatchMessages {
    static let failure = UInt8(ascii: "F")
    static let textLimit = 2048
    private static let length = 9

    private(set) var stage: UpdateStage
    /// Whether the stage was `waiting` at any time: several may be read at once.
    private(set) var hasWaited = false
    /// Something came that is no message, or not its turn.
    private(set) var isBroken = false
    private let secret: UInt64
    private let mayWait: Bool
    /// Whether the messages come from a process that this one has not executed.
    var isAnothers = false
    /// Whether the watch is a socket with SO_PASSCRED.
    var namesSender = false
    /// The process that has sent what came last; 0 while that is not known, and for one of another PID namespace.
    private(set) var sender: pid_t = 0
    /// The start of a message.
    private var partial: [UInt8] = []
    private var text: [UInt8]?
    /// Whether the process has refused, and stays as a placeholder for the old VMM.
    private(set) var hasStayed = false

    /// - Parameter mayWait: whether `waiting` is a stage of this update.
    init(stage: UpdateStage, secret: UInt64, mayWait: Bool) {
        self.stage = stage
        self.secret = secret
        self.mayWait = mayWait
    }

    static func message(_ secret: UInt64, _ letter: UInt8, _ text: String = "") -> [UInt8] {
        withUnsafeBytes(of: secret.littleEndian) { Array($0) } + [letter]
            + text.utf8.prefix(textLimit).filter { $0 != 0 }
    }

    /// Why the process refuses; nil as long as it does not.
    var refusal: String? { text.map { String(decoding: $0, as: UTF8.self) } }

    /// Reads what there is.
    /// - Returns: false at the end: the process is gone, has refused, or is none of ours.
    mutating func receive(from watch: Int32) -> Bool {
        var buffer = [UInt8](repeating: 0, count: WatchMessages.length + WatchMessages.textLimit)
        var count = read(watch, into: &buffer)
        // The other side has closed it without having read all; what it said before is there.
        if count < 0, errno == ECONNRESET { count = read(watch, into: &buffer) }
        if count < 0, isTransientFailure() { return true }
        guard count > 0 else { return false }
        for byte in buffer[..<count] {
            if text != nil {
                if byte == 0 { hasStayed = true } else { text?.append(byte) }
            } else {
                partial.append(byte)
                if partial.count == WatchMessages.length, !take() {
                    isBroken = true
                    return false
                }
            }
        }
        return text.map { $0.count <= WatchMessages.textLimit } ?? true
    }

    private mutating func read(_ watch: Int32, into buffer: inout [UInt8]) -> Int {
        let length = buffer.count
        return retryingInterrupts {
            namesSender ? cbaton_receive_from(watch, &buffer, length, &sender) : Glibc.read(watch, &buffer, length)
        }
    }

    /// - Returns: false when it is no message, or not its turn.
    private mutating func take() -> Bool {
        defer { partial = [] }
        guard partial.starts(with: WatchMessages.message(secret, 0).dropLast()) else { return false }
        let letter = partial[WatchMessages.length - 1]
        if letter == WatchMessages.failure {
            text = []
            return true
        }
        guard let next = UpdateStage(rawValue: letter), stage.mayBeFollowed(by: next, mayWait: mayWait) else {
            return false
        }
        stage = next
        if next == .waiting { hasWaited = true }
        return true
    }

    /// The end of the process, as a sentence.
    var ended: String {
        if let refusal { return "the new VMM refused: \(refusal)" }
        if isBroken { return isAnothers ? WatchMessages.strangeVMM : WatchMessages.stranger }
        return switch stage {
        case .starting: "the new VMM ended during its start"
        case .ready, .waiting, .loading, .passed, .committed: "the new VMM ended before it took the guest over"
        }
    }

    static let stranger =
        "something that is no message of a new VMM came from the process that was executed: "
        + "a command in front of the VMM must leave descriptors alone that it does not know"

    private static let strangeVMM =
        "something that is no message of a new VMM came from the other end of the channel: "
        + "is it a VMM of another version, or none?"

    /// The stage has lasted longer than `limit` nanoseconds, as a sentence.
    func tooLate(limit: Int64) -> String {
        let span = "within \(limit / 1_000_000) ms"
        return switch stage {
        case .starting: "the new VMM did not start \(span)"
        case .ready, .waiting, .loading, .passed, .committed: "the new VMM did not load the guest's state \(span)"
        }
    }
}
