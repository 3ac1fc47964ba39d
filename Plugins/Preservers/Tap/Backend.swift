import BatonRuntime
import Glibc

/// A tap interface of the host: what the host sends to it is the guest's to
/// receive, and what the guest sends comes out of it.
///
/// All queues of the interface feed the card's one receive queue; frames from
/// the guest leave by the first, so the kernel's steering sends the answers
/// there too.
final class TapBackend: NetBackend {
    private let loop: EventLoop
    private let configuration: TapConfiguration
    private var interface = ""
    private var headerSize = 0
    private var fds: [Int32] = []
    private var readers: [FrameReader] = []
    /// A frame on its way out, behind its header, which is all zeroes.
    private var frame = UnsafeMutableRawBufferPointer(start: nil, count: 0)
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

    deinit {
        close()
        frame.deallocate()
    }

    // MARK: Opening

    private func open() throws(VMMError) {
        var name = configuration.interface
        for index in 0..<configuration.queues {
            let queue: TapInterface.Queue
            if configuration.descriptors.isEmpty {
                queue = try TapInterface.attach(
                    name, multiQueue: configuration.queues > 1, header: configuration.hasHeader ?? false)
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
        if let script = configuration.script { try NetworkScript.run(script, interface: interface) }
    }

    private func start(held: [[UInt8]]) {
        frame = .allocate(byteCount: headerSize + NetBackend.maxFrame, alignment: 16)
        frame.initializeMemory(as: UInt8.self, repeating: 0)
        for (index, fd) in fds.enumerated() {
            readers.append(
                FrameReader(
                    fd: fd, loop: loop, headerSize: headerSize, held: index < held.count ? held[index] : [],
                    deliver: { [unowned self] in deliver($0) },
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

    override func receiveReady() { for reader in readers { reader.ready() } }

    override func send(_ parts: UnsafeBufferPointer<UnsafeRawBufferPointer>) {
        guard let fd = fds.first, let end = NetBackend.gather(parts, into: frame, at: headerSize) else { return }
        let count = retryingInterrupts { write(fd, frame.baseAddress, end) }
        if count < 0 { Log.trace("net_tap_drop", "\(id): \(VMMError.system("write failed").message)") }
    }

    // MARK: Update

    /// Saves the queues and hands over the rest. Nothing changes here: the
    /// guest may come back to this process.
    func handOver(to cpr: CprController) throws(VMMError) {
        guard !fds.isEmpty else { return }
        for (index, fd) in fds.enumerated() { try cpr.save(fd, of: self, as: "queue", index: index) }
        cpr.handOver(self) {
            $0.put("interface", interface)
            $0.put("header-size", UInt64(headerSize))
            $0.put("queues", UInt64(fds.count))
            for (index, reader) in readers.enumerated() { $0.put("held\(index)", bytes: reader.held) }
        }
    }

    /// Goes on with the queues of the process before. What they are is known:
    /// the kernel is not asked, and nothing is read.
    private func inherit(_ heritage: NetHeritage) throws(VMMError) {
        let state = heritage.state
        interface = try state.string("interface")
        headerSize = Int(try state.unsigned("header-size", in: 0...255))
        let count = Int(try state.unsigned("queues", in: 1...UInt64(TapConfiguration.maxQueues)))
        var held: [[UInt8]] = []
        for index in 0..<count { held.append(try state.bytes("held\(index)", count: 0...NetBackend.maxFrame)) }
        try state.finish()
        for index in 0..<count {
            guard let fd = heritage.claim("queue", index: index) else {
                throw heritage.mismatch("has lost the descriptor of queue \(index)")
            }
            fds.append(fd)
        }
        guard count == configuration.queues else {
            throw heritage.mismatch("has \(count) queues in the CPR state, but \(configuration.queues) on the command line")
        }
        if let name = configuration.interface, name != interface, !name.utf8.contains(UInt8(ascii: "%")) {
            throw heritage.mismatch("is interface '\(interface)' in the CPR state, but '\(name)' on the command line")
        }
        start(held: held)
    }

    func committed() { isCommitted = true }
}
