import BatonRuntime
import Glibc

/// A connection to a vfio-user server, by which its device is reached. Owns
/// the sockets and the descriptors that the server has given for its regions.
final class VFIOUserConnection {
    /// Tells the server from others: its socket, as on the command line.
    let name: String
    let ram: VFIOUserRAM
    let space: AddressSpace
    private(set) var capabilities = VFIOUserCapabilities()
    let socket: Int32
    /// The server's connection for requests of its own, or -1.
    private(set) var requestSocket: Int32 = -1
    /// By the region's number.
    var regionFiles: [Int: Int32] = [:]
    private(set) var isConnected = true
    private let channel: VFIOUserChannel
    /// Whose events are watched, if they are.
    private var loop: EventLoop?
    /// Why the connection ended.
    private var failure: VMMError?

    /// Nanoseconds that the server has for one message by default.
    static let timeLimit: Int64 = 5_000_000_000

    /// Begins to speak with a server, and tells it where guest RAM is.
    /// - Parameters:
    ///   - connected: the connection's from here on.
    ///   - timeLimit: nanoseconds that the server has for one message.
    init(
        _ connected: consuming OwnedFD, name: String, space: AddressSpace, timeLimit: Int64
    ) throws(VMMError) {
        self.name = name
        self.space = space
        ram = VFIOUserRAM(space)
        channel = VFIOUserChannel(socket: connected.raw, timeLimit: timeLimit)
        socket = connected.release()
        attach()
        try negotiate()
        try mapRAM()
    }

    /// Takes over the connection of the process before, on which nothing is
    /// said here.
    /// - Parameters: descriptors, which are the connection's from here on; -1
    ///   for what is not there.
    init(
        inherited name: String, socket: Int32, requestSocket: Int32, regionFiles: [Int: Int32],
        capabilities: VFIOUserCapabilities, space: AddressSpace, timeLimit: Int64
    ) {
        self.name = name
        self.space = space
        ram = VFIOUserRAM(space)
        self.capabilities = capabilities
        self.socket = socket
        self.requestSocket = requestSocket
        self.regionFiles = regionFiles
        isConnected = socket >= 0
        channel = VFIOUserChannel(socket: socket, timeLimit: timeLimit)
        if requestSocket >= 0 { channel.attend(requestSocket) }
        attach()
    }

    deinit {
        if socket >= 0 { close(socket) }
        if requestSocket >= 0 { close(requestSocket) }
        for fd in regionFiles.values { close(fd) }
    }

    /// The beginning of messages about the device, as in QEMU's.
    static func label(_ name: String) -> String { "vfio vfio-user:\(name)" }

    private func attach() {
        channel.onRequest = { [unowned self] command, payload in serve(command, payload) }
        channel.onTwinFailure = { [unowned self] reason in end(reason) }
    }

    private func negotiate() throws(VMMError) {
        let answer = call(.version, VFIOUserCapabilities.request, size: 4...65536, fdCount: 0...16)
        guard case .success(let (payload, fds)) = answer else {
            throw explain(answer, "the server refused the version")
        }
        do throws(VMMError) { capabilities = try VFIOUserCapabilities(answer: payload) } catch {
            throw error.prefixed("the server cannot be used")
        }
        guard let index = capabilities.twinSocket else { return }
        guard index < fds.count else {
            throw VMMError("the server's twin socket is descriptor \(index) of \(fds.count)")
        }
        while fds.count > index {
            if requestSocket >= 0 { close(requestSocket) }
            requestSocket = fds.take() ?? -1
        }
        channel.attend(requestSocket)
    }

    // MARK: Exchanges

    typealias Answer = Result<(payload: [UInt8], fds: ReceivedFDs), VFIOUserErrno>

    /// Sends a command and waits for its answer, with which the connection may
    /// end.
    func call(
        _ command: VFIOUser.Command, _ payload: [UInt8], fds: [Int32] = [], size: ClosedRange<Int>,
        fdCount: ClosedRange<Int> = 0...0
    ) -> Answer {
        guard isConnected else { return .failure(VFIOUserErrno(code: ENOTCONN)) }
        do throws(VFIOUserChannel.Failure) {
            return .success(try channel.call(command, payload, fds: fds, size: size, fdCount: fdCount))
        } catch {
            return .failure(outcome(error))
        }
    }

    /// Sends a command that is not answered.
    /// - Returns: an error number.
    func post(_ command: VFIOUser.Command, _ payload: [UInt8]) -> Int32 {
        guard isConnected else { return ENOTCONN }
        do throws(VFIOUserChannel.Failure) { try channel.post(command, payload) } catch { return outcome(error).code }
        return 0
    }

    private func outcome(_ failure: VFIOUserChannel.Failure) -> VFIOUserErrno {
        switch failure {
        case .refused(let code): return VFIOUserErrno(code: code)
        case .broken(let reason):
            end(reason)
            return VFIOUserErrno(code: ECONNRESET)
        }
    }

    /// The error of an answer that is none.
    func explain(_ answer: Answer, _ what: String) -> VMMError {
        if let failure { return failure.prefixed(what) }
        guard case .failure(let error) = answer else { return VMMError(what) }
        return .system(what, errno: error.code)
    }

    /// A better reason for an error than an error number, where the connection
    /// has ended.
    func reason(_ error: VMMError) -> VMMError { failure ?? error }

    /// Ends the connection for cause: from here on the device does not answer.
    private func end(_ reason: VMMError) {
        guard isConnected else { return }
        isConnected = false
        failure = reason
        // Closed later: somebody may be waiting for it right now.
        shutdown(socket, Int32(SHUT_RDWR))
        if requestSocket >= 0 { shutdown(requestSocket, Int32(SHUT_RDWR)) }
        guard loop != nil else { return }
        unwatch()
        Report.warning("\(Self.label(name)): the server is gone: \(reason.message)")
    }

    // MARK: Events

    /// From here on the server's requests are served, and whoever else wants
    /// the loop has a turn after each access that it is slow to answer.
    func watch(_ vm: VirtualMachine) throws(VMMError) {
        guard isConnected else { return }
        let loop = vm.loop
        self.loop = loop
        channel.onSlowAnswer = { [weak vm] in vm?.accelerator?.yield() }
        try loop.watch(socket, .readable) { [unowned self] _ in
            do throws(VFIOUserChannel.Failure) { try channel.serveMain() } catch { _ = outcome(error) }
        }
        guard requestSocket >= 0 else { return }
        try loop.watch(requestSocket, .readable) { [unowned self] _ in channel.serveTwin() }
    }

    private func unwatch() {
        loop?.unwatch(socket)
        if requestSocket >= 0 { loop?.unwatch(requestSocket) }
        loop = nil
    }
}

/// An error number, as the server or the system says it.
struct VFIOUserErrno: Error { let code: Int32 }
