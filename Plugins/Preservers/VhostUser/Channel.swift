import BatonRuntime

/// The front end's side of one connection: sends a message, waits for its
/// reply, and believes nothing that comes.
///
/// Every call blocks up to the deadline set by `begin`. After an error the two
/// sides no longer agree where a message starts: the connection must end.
final class VhostUserChannel {
    private let peer: PeerSocket
    /// Whether REPLY_ACK was negotiated.
    var acknowledges = false

    /// - Parameters:
    ///   - socket: the chardev's.
    ///   - patience: the device's with its back ends.
    init(socket: Int32, patience: PeerPatience) { peer = PeerSocket(socket, patience: patience) }

    var socket: Int32 { peer.fd }

    /// Starts the clock for a sequence of messages.
    /// - Parameter rationed: what the guest or the back end causes.
    func begin(rationed: Bool = false) { peer.begin(limit: VhostUser.timeLimit, rationed: rationed) }

    var isLate: Bool { peer.isLate }
    /// Nanoseconds that the sequence may take.
    var limit: Int64 { peer.limit }

    // MARK: Exchanges

    /// Sends a request that changes something; with REPLY_ACK waits until the
    /// back end has carried it out.
    func set(_ request: VhostUser.Request, _ payload: [UInt8], fds: [Int32] = []) throws(VMMError) {
        try send(request, payload, fds: fds, needReply: acknowledges)
        guard acknowledges else { return }
        let (bytes, _) = try receive(request, fdCount: 0...0)
        var cursor = ByteCursor(bytes[...])
        guard let status = cursor.unsigned(UInt64.self), cursor.isAtEnd else {
            throw problem(request, "has an acknowledgement of \(bytes.count) bytes")
        }
        guard status == 0 else { throw problem(request, "was refused (\(status))") }
    }

    /// Sends a request that has a reply of its own.
    /// - Parameter fdCount: how many descriptors may come with the reply.
    func get(
        _ request: VhostUser.Request, _ payload: [UInt8] = [], fdCount: ClosedRange<Int> = 0...0
    ) throws(VMMError) -> (payload: [UInt8], fds: ReceivedFDs) {
        try send(request, payload, fds: [], needReply: false)
        return try receive(request, fdCount: fdCount)
    }

    /// Sends a request whose reply is one 64-bit number.
    func getNumber(_ request: VhostUser.Request) throws(VMMError) -> UInt64 {
        let (bytes, _) = try get(request)
        var cursor = ByteCursor(bytes[...])
        guard let value = cursor.unsigned(UInt64.self), cursor.isAtEnd else {
            throw problem(request, "has a reply of \(bytes.count) bytes, not 8")
        }
        return value
    }

    func problem(_ request: VhostUser.Request, _ what: String) -> VMMError {
        VMMError("vhost-user message \(request.rawValue) (\(request)) \(what)")
    }

    // MARK: Sending

    private func send(
        _ request: VhostUser.Request, _ payload: [UInt8], fds: [Int32], needReply: Bool
    ) throws(VMMError) {
        // Answers come in order.
        try settle()
        let flags = VhostUser.Flag.version | (needReply ? VhostUser.Flag.needReply : 0)
        let header = VhostUserHeader(request: request.rawValue, flags: flags, size: UInt32(payload.count))
        do throws(PeerFailure) {
            try peer.send(header.bytes + payload, fds: fds)
        } catch .system(let code) {
            throw .system("vhost-user message \(request.rawValue) (\(request)) could not be sent", errno: code)
        } catch {
            throw problem(request, error)
        }
    }

    private func problem(_ request: VhostUser.Request, _ failure: PeerFailure) -> VMMError {
        switch failure {
        case .late: problem(request, "was not answered within \(peer.limit / 1_000_000) ms")
        case .closed: VMMError("the back end has closed the connection")
        case .tooManyDescriptors: problem(request, "was answered with too many file descriptors")
        case .system(let code): .system("the connection failed", errno: code)
        }
    }

    // MARK: Receiving

    private func receive(
        _ request: VhostUser.Request, fdCount: ClosedRange<Int>
    ) throws(VMMError) -> ([UInt8], ReceivedFDs) {
        let fds = ReceivedFDs()
        let head = try read(VhostUser.headerSize, request, fds)
        let size = try payloadSize(head, request)
        let payload = try read(size, request, fds)
        guard fdCount.contains(fds.count) else {
            throw problem(request, "was answered with \(fds.count) file descriptors")
        }
        return (payload, fds)
    }

    /// Checks the header of a reply.
    private func payloadSize(_ head: [UInt8], _ request: VhostUser.Request) throws(VMMError) -> Int {
        guard let header = VhostUserHeader(head[...]) else { throw problem(request, "has a reply without a header") }
        guard header.request == request.rawValue else {
            throw problem(request, "was answered as message \(header.request)")
        }
        guard header.flags & VhostUser.Flag.versionMask == VhostUser.Flag.version,
            header.flags & VhostUser.Flag.reply != 0
        else { throw problem(request, "was answered with the flags \(Hex(UInt64(header.flags)))") }
        guard header.size <= UInt32(VhostUser.maxPayload) else {
            throw problem(request, "was answered with \(header.size) bytes")
        }
        return Int(header.size)
    }

    private func read(_ count: Int, _ request: VhostUser.Request, _ fds: ReceivedFDs) throws(VMMError) -> [UInt8] {
        do throws(PeerFailure) { return try peer.receive(count, fds) } catch { throw problem(request, error) }
    }

    // MARK: The configuration, while the guest goes on

    /// What has come of the reply to `startGetConfig`; nil when none is due.
    private var awaited: (size: Int, reply: [UInt8])?
    /// Is given the configuration that `startGetConfig` asked for.
    var onConfig: (([UInt8]) -> Void)?
    var awaitsConfig: Bool { awaited != nil }

    /// Asks for the configuration space, and does not wait for it.
    func startGetConfig(size: Int) throws(VMMError) {
        try send(.getConfig, VhostUserChannel.configRequest(size: size), fds: [], needReply: false)
        awaited = (size, [])
    }

    /// Takes what has come of the reply.
    func continueGetConfig() throws(VMMError) { try takeConfig(waits: false) }

    /// Waits for a reply that is due.
    func settle() throws(VMMError) { while awaited != nil { try takeConfig(waits: true) } }

    private func takeConfig(waits: Bool) throws(VMMError) {
        guard let (size, reply) = awaited else { return }
        var end = VhostUser.headerSize
        if reply.count >= end { end += try payloadSize(Array(reply[..<end]), .getConfig) }
        let fds = ReceivedFDs()
        var more: [UInt8] = []
        do throws(PeerFailure) {
            let missing = end - reply.count
            more = waits ? try peer.receive(missing, fds) : try peer.receiveAvailable(missing, fds)
        } catch {
            throw problem(.getConfig, error)
        }
        guard fds.count == 0 else { throw problem(.getConfig, "was answered with \(fds.count) file descriptors") }
        let whole = reply + more
        awaited?.reply = whole
        guard whole.count == end else { return }
        if end == VhostUser.headerSize, try payloadSize(whole, .getConfig) > 0 {
            // Now it is known how much is to come.
            return try takeConfig(waits: waits)
        }
        awaited = nil
        onConfig?(try configuration(Array(whole[VhostUser.headerSize...]), size: size))
    }
}
