import BatonRuntime
import Glibc

/// The client's side of the connection: sends a command, waits for its reply,
/// serves what the server asks meanwhile, and believes nothing that comes.
///
/// Every call blocks up to the time limit. After an error other than the
/// server's refusal the connection must end.
final class VFIOUserChannel {
    /// Why a command did not do what it should.
    enum Failure: Error {
        /// The server's error number.
        case refused(Int32)
        /// What is wrong with the connection.
        case broken(VMMError)
    }

    /// How long the server's own requests may keep the guest waiting, on both
    /// connections.
    private let patience = PeerPatience()
    private let main: PeerSocket
    /// The server's connection for requests of its own.
    private var twin: PeerSocket?
    /// Nanoseconds.
    private let timeLimit: Int64
    private var nextID: UInt16 = 1
    /// Nanoseconds after which an answer is slow.
    private static let slow: Int64 = 1_000_000
    /// Called after a command that kept the guest waiting.
    var onSlowAnswer: (() -> Void)?
    /// Answers a request of the server; the payload is its own. A reply's
    /// payload, or an error number.
    var onRequest: ((_ command: UInt16, _ payload: [UInt8]) -> Result<[UInt8], VFIOUserErrno>)?
    /// Called when the twin connection, which is served in the midst of other
    /// things, must end.
    var onTwinFailure: ((VMMError) -> Void)?

    /// - Parameters:
    ///   - socket: stays the caller's.
    ///   - timeLimit: nanoseconds for each message.
    init(socket: Int32, timeLimit: Int64) {
        main = PeerSocket(socket, patience: patience)
        self.timeLimit = timeLimit
    }

    /// From here on the server's requests come on a connection of their own.
    func attend(_ socket: Int32) {
        let twin = PeerSocket(socket, patience: patience)
        self.twin = twin
        main.attendant = (socket, { [unowned self] in serveTwin() })
    }

    // MARK: Commands

    /// Sends a command and waits for its reply.
    /// - Parameters:
    ///   - size: which sizes of the reply's payload make sense.
    ///   - fdCount: how many descriptors may come with it.
    func call(
        _ command: VFIOUser.Command, _ payload: [UInt8], fds: [Int32] = [], size: ClosedRange<Int>,
        fdCount: ClosedRange<Int> = 0...0
    ) throws(Failure) -> (payload: [UInt8], fds: ReceivedFDs) {
        main.begin(limit: timeLimit)
        defer { if main.elapsed > VFIOUserChannel.slow { onSlowAnswer?() } }
        let id = try send(command, payload, fds: fds, flags: VFIOUser.Flag.command)
        while true {
            let (header, bytes, received) = try receive(main, command)
            guard header.isReply else {
                try answer(main, header, bytes, received)
                guard !main.isLate else { throw .broken(problem(.late, command)) }
                continue
            }
            guard header.id == id, header.command == command.rawValue else {
                throw broken(command, "was answered as message \(header.command) number \(header.id)")
            }
            if header.flags & VFIOUser.Flag.error != 0 {
                throw .refused((1...4095).contains(header.error) ? Int32(header.error) : EIO)
            }
            guard size.contains(bytes.count) else { throw broken(command, "was answered with \(bytes.count) bytes") }
            guard fdCount.contains(received.count) else {
                throw broken(command, "was answered with \(received.count) file descriptors")
            }
            return (bytes, received)
        }
    }

    /// Sends a command that the server does not answer.
    func post(_ command: VFIOUser.Command, _ payload: [UInt8]) throws(Failure) {
        main.begin(limit: timeLimit)
        defer { if main.elapsed > VFIOUserChannel.slow { onSlowAnswer?() } }
        _ = try send(command, payload, fds: [], flags: VFIOUser.Flag.command | VFIOUser.Flag.noReply)
    }

    private func send(
        _ command: VFIOUser.Command, _ payload: [UInt8], fds: [Int32], flags: UInt32
    ) throws(Failure) -> UInt16 {
        let id = nextID
        nextID &+= 1
        let header = VFIOUserHeader(id: id, command: command.rawValue, payload: payload.count, flags: flags)
        do throws(PeerFailure) { try main.send(header.bytes + payload, fds: fds) } catch {
            throw .broken(problem(error, command))
        }
        return id
    }

    // MARK: Requests of the server

    /// There is something on a connection, or its end.
    func serveMain() throws(Failure) {
        main.begin(limit: timeLimit, rationed: true)
        let (header, bytes, fds) = try receive(main, nil)
        guard header.isCommand else {
            throw .broken(VMMError("a reply to message \(header.command) number \(header.id) that nobody waits for"))
        }
        try answer(main, header, bytes, fds)
    }

    /// The same, of the connection for the server's requests.
    func serveTwin() {
        guard let twin else { return }
        twin.begin(limit: timeLimit, rationed: true)
        do throws(Failure) {
            let (header, bytes, fds) = try receive(twin, nil)
            guard header.isCommand else { throw .broken(VMMError("a reply where only the server asks")) }
            try answer(twin, header, bytes, fds)
        } catch {
            main.attendant = nil
            self.twin = nil
            guard case .broken(let reason) = error else { return }
            onTwinFailure?(reason)
        }
    }

    private func answer(
        _ peer: PeerSocket, _ header: VFIOUserHeader, _ payload: [UInt8], _ fds: ReceivedFDs
    ) throws(Failure) {
        guard fds.count == 0 else {
            throw .broken(VMMError("message \(header.command) came with \(fds.count) file descriptors"))
        }
        guard header.isCommand else {
            throw .broken(VMMError("message \(header.command) is neither command nor reply"))
        }
        let result = onRequest?(header.command, payload) ?? .failure(VFIOUserErrno(code: EINVAL))
        guard header.flags & VFIOUser.Flag.noReply == 0 else { return }
        var flags = VFIOUser.Flag.reply
        var (bytes, code): ([UInt8], Int32) = ([], 0)
        switch result {
        case .success(let reply): bytes = reply
        case .failure(let error):
            code = error.code
            flags |= VFIOUser.Flag.error
        }
        let reply = VFIOUserHeader(
            id: header.id, command: header.command, payload: bytes.count, flags: flags, error: UInt32(bitPattern: code))
        do throws(PeerFailure) { try peer.send(reply.bytes + bytes) } catch { throw .broken(problem(error, nil)) }
    }

    // MARK: Receiving

    private func receive(
        _ peer: PeerSocket, _ waiting: VFIOUser.Command?
    ) throws(Failure) -> (VFIOUserHeader, [UInt8], ReceivedFDs) {
        let fds = ReceivedFDs()
        do throws(PeerFailure) {
            let head = try peer.receive(VFIOUserHeader.size, fds)
            let limit = VFIOUserHeader.size + VFIOUser.maxTransfer + VFIOUser.maxOverhead
            guard let header = VFIOUserHeader(head[...]), (VFIOUserHeader.size...limit).contains(Int(header.size))
            else { throw PeerFailure.system(EMSGSIZE) }
            return (header, try peer.receive(Int(header.size) - VFIOUserHeader.size, fds), fds)
        } catch {
            throw .broken(problem(error, waiting, peer))
        }
    }

    private func broken(_ command: VFIOUser.Command, _ what: String) -> Failure {
        .broken(VMMError("message \(command.rawValue) (\(command)) \(what)"))
    }

    private func problem(
        _ failure: PeerFailure, _ command: VFIOUser.Command?, _ peer: PeerSocket? = nil
    ) -> VMMError {
        let limit = (peer ?? main).limit
        let name = command.map { "message \($0.rawValue) (\($0))" } ?? "a message of the server"
        return switch failure {
        case .late: VMMError("\(name) was not answered or completed within \(limit / 1_000_000) ms")
        case .closed: VMMError("it has closed the connection")
        case .tooManyDescriptors: VMMError("\(name) was answered with too many file descriptors")
        case .system(EMSGSIZE): VMMError("\(name) was answered with a message of an impossible size")
        case .system(let code): .system("the connection failed", errno: code)
        }
    }
}
