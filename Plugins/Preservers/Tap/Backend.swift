import BatonRuntime
import Glibc

/// A tap interface of the host: what the host sends to it is the guest's to
/// receive, and what the guest sends comes out of it.
///
/// Each queue of the interface is one of the card's pairs. Those that the card
/// does not use take no part in the traffic; the kernel steers the answers to
/// what came from the guest to the queue that it came by.
final class TapBackend: NetBackend {
    private let loop: EventLoop
    private let configuration: TapConfiguration
    private var interface = ""
    private var headerSize = 0
    private var fds: [Int32] = []
    private var readers: [FrameReader] = []
    /// How many take part in the traffic, and how many the card wants to.
    private var usedQueues = 1
    private var wantedQueues = 1
    /// What the kernel leaves undone, and what the card allows it to.
    private var offloads: NetOffloads = []
    private var wantedOffloads: NetOffloads = []
    /// Whether the guest is this process' own, so that it is the one that
    /// takes the interface down at the end.
    private var isCommitted: Bool

    /// - Parameter heritage: what the process before left, instead of opening.
    /// - Throws: why there is no such interface; then nothing of it stays.
    init(
        id: String, _ configuration: TapConfiguration, vm: VirtualMachine, heritage: NetHeritage?
    ) throws(VMMError) {
        loop = vm.loop
        self.configuration = configuration
        isCommitted = vm.cpr?.awaitsLoad != true
        super.init(id: id, backend: "tap")
        if let heritage {
            try inherit(heritage)
        } else {
            do throws(VMMError) { try open() } catch { throw error.prefixed("netdev '\(id)'") }
            start(held: [])
        }
    }

    override var queueCount: Int { fds.count }
    override var carriesHeaders: Bool { headerSize >= FrameHeader.size }

    deinit { close() }

    /// Whether it was taken away.
    var isShutDown: Bool { fds.isEmpty }

    // MARK: Opening

    private func open() throws(VMMError) {
        var name = configuration.interface
        for index in 0..<configuration.queues {
            let queue: TapInterface.Queue
            if configuration.descriptors.isEmpty {
                queue = try TapInterface.attach(
                    name, multiQueue: configuration.queues > 1, header: configuration.hasHeader ?? true)
            } else {
                queue = try TapInterface.describe(configuration.descriptors[index])
                try FD.setNonBlocking(queue.fd, true)
                try FD.setCloseOnExec(queue.fd, true)
                if let wanted = configuration.hasHeader, wanted != (queue.headerSize > 0) {
                    throw VMMError("vnet_hdr=\(wanted ? "on" : "off"), but fd \(queue.fd) was opened otherwise")
                }
            }
            fds.append(queue.fd)
            guard index == 0 || (queue.interface == interface && queue.headerSize == headerSize) else {
                throw VMMError("fd \(queue.fd) is of another interface, or opened otherwise, than fd \(fds[0])")
            }
            name = queue.interface
            interface = queue.interface
            headerSize = queue.headerSize
        }
        for fd in fds.dropFirst() {
            // EINVAL: it is aside already.
            guard TapInterface.use(fd, false) || errno == EINVAL else {
                throw .system("could not put a queue of \(interface) aside")
            }
        }
        if let script = configuration.script { try NetworkScript.run(script, interface: interface) }
    }

    private func start(held: [(frame: [UInt8], header: FrameHeader)]) {
        readers = []
        for (index, fd) in fds.enumerated() {
            let held = index < held.count ? held[index] : ([], FrameHeader())
            readers.append(
                FrameReader(
                    fd: fd, loop: loop, headerSize: headerSize, held: held.0, heldHeader: held.1,
                    deliver: { [unowned self] in deliver($0, header: $1, queue: index) },
                    failed: { [unowned self] in
                        Report.warning("netdev \(self.id): interface \(self.interface): \($0.message)")
                    }))
        }
    }

    private func close() {
        readers = []
        for fd in fds { Glibc.close(fd) }
        fds = []
    }

    override func shutDown() {
        guard !fds.isEmpty else { return }
        if let script = configuration.downScript, isCommitted {
            do throws(VMMError) {
                try NetworkScript.run(script, interface: interface)
            } catch {
                Report.warning("netdev \(id): \(error.message)")
            }
        }
        close()
    }

    // MARK: Frames

    override func receiveReady(queue: Int) {
        guard queue < usedQueues, readers.indices.contains(queue) else { return }
        readers[queue].ready()
    }

    override func send(_ parts: UnsafeBufferPointer<UnsafeRawBufferPointer>, header: FrameHeader, queue: Int) {
        let frame = NetBackend.scratch
        guard fds.indices.contains(queue), let end = NetBackend.gather(parts, into: frame, at: headerSize) else {
            return
        }
        for index in 0..<headerSize { frame[index] = 0 }
        if carriesHeaders { header.store(to: frame) }
        let fd = fds[queue]
        let count = retryingInterrupts { write(fd, frame.baseAddress, end) }
        if count < 0 { Log.trace("net_backend_drop", "\(id): \(VMMError.system("write failed").message)") }
    }

    // MARK: What the card chooses

    override func useQueues(_ count: Int) -> Bool {
        guard (1...max(1, fds.count)).contains(count) else { return false }
        wantedQueues = count
        return applyQueues()
    }

    override func allow(_ offloads: NetOffloads) {
        wantedOffloads = offloads
        applyOffloads()
    }

    /// Until the guest is this process' own the interface stays as it is.
    private func applyQueues() -> Bool {
        guard isCommitted else { return true }
        let before = usedQueues
        while usedQueues < wantedQueues {
            guard TapInterface.use(fds[usedQueues], true) else {
                Report.warning("netdev \(id): \(VMMError.system("could not use a queue of \(interface)").message)")
                wantedQueues = before
                _ = applyQueues()
                return false
            }
            usedQueues += 1
        }
        while usedQueues > wantedQueues {
            usedQueues -= 1
            readers[usedQueues].discard()
            // One that goes on without being read would swallow frames, but it
            // is the kernel that has no reason to refuse.
            guard TapInterface.use(fds[usedQueues], false) else {
                Report.warning(
                    "netdev \(id): \(VMMError.system("could not put a queue of \(interface) aside").message)")
                continue
            }
        }
        return true
    }

    private func applyOffloads() {
        guard isCommitted, carriesHeaders, offloads != wantedOffloads, let fd = fds.first else { return }
        guard TapInterface.allow(wantedOffloads, fd) else {
            return Report.warning(
                "netdev \(id): \(VMMError.system("could not set the offloads of \(interface)").message)")
        }
        offloads = wantedOffloads
    }

    // MARK: Update

    /// Saves the queues and hands over the rest. Nothing changes here: the
    /// guest may come back to this process.
    func handOver(to cpr: CprController) throws(VMMError) {
        guard !fds.isEmpty else { return }
        for (index, fd) in fds.enumerated() { cpr.save(fd, of: self, as: "queue", index: index) }
        cpr.handOver(self) {
            $0.put("interface", interface)
            $0.put("header-size", UInt64(headerSize))
            $0.put("queues", UInt64(fds.count))
            $0.put("used-queues", UInt64(usedQueues))
            $0.put("offloads", UInt64(offloads.rawValue))
            for (index, reader) in readers.enumerated() {
                $0.put("held\(index)", bytes: reader.held)
                if !reader.held.isEmpty { $0.put("header\(index)", bytes: reader.heldHeader.bytes) }
            }
        }
    }

    /// Goes on with the queues of the process before. What they are is known:
    /// the kernel is not asked, and nothing is read.
    private func inherit(_ heritage: NetHeritage) throws(VMMError) {
        let state = heritage.state
        interface = try state.string("interface")
        headerSize = Int(try state.unsigned("header-size", in: 0...255))
        let count = Int(try state.unsigned("queues", in: 1...UInt64(TapConfiguration.maxQueues)))
        // Processes that knew nothing of it used all queues, and no offloads.
        let held = try changing(state, queues: count)
        try state.finish()
        for index in 0..<count {
            guard let fd = heritage.claim("queue", index: index) else {
                throw heritage.mismatch("has lost the descriptor of queue \(index)")
            }
            fds.append(fd)
        }
        guard count == configuration.queues else {
            throw heritage.mismatch(
                "has \(count) queues in the CPR state, but \(configuration.queues) on the command line")
        }
        if let name = configuration.interface, name != interface, !name.utf8.contains(UInt8(ascii: "%")) {
            throw heritage.mismatch("is interface '\(interface)' in the CPR state, but '\(name)' on the command line")
        }
        start(held: held)
    }

    /// Takes what changes as the guest runs.
    /// - Returns: the frames that are held, by queue.
    private func changing(
        _ state: StateReader, queues count: Int
    ) throws(VMMError) -> [(frame: [UInt8], header: FrameHeader)] {
        usedQueues = state.has("used-queues") ? Int(try state.unsigned("used-queues", in: 1...UInt64(count))) : count
        wantedQueues = usedQueues
        if state.has("offloads") {
            offloads = NetOffloads(rawValue: UInt32(try state.unsigned("offloads", in: 0...15)))
        }
        wantedOffloads = offloads
        var held: [(frame: [UInt8], header: FrameHeader)] = []
        for index in 0..<count {
            let frame = try state.bytes("held\(index)", count: 0...NetBackend.maxFrame)
            var header = FrameHeader()
            if state.has("header\(index)") {
                header = FrameHeader(
                    bytes: try state.bytes("header\(index)", count: FrameHeader.size...FrameHeader.size))
            }
            held.append((frame, header))
        }
        return held
    }

    /// Takes over what has changed since this process was executed.
    func takeOver(_ changes: PartChanges) throws(VMMError) {
        for index in fds.indices {
            if case .unchanged = NetHeritage.descriptor("queue", index: index, of: id, in: changes) { continue }
            throw VMMError("queue \(index) is another now", hint: "Try the update again.")
        }
        guard let state = changes.state else { return }
        _ = try state.string("interface")
        _ = try state.unsigned("header-size")
        let count = Int(try state.unsigned("queues", in: UInt64(fds.count)...UInt64(fds.count)))
        start(held: try changing(state, queues: count))
    }

    func committed() {
        isCommitted = true
        _ = applyQueues()
        applyOffloads()
    }
}
