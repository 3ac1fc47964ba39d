import BatonRuntime
import Glibc

/// `-netdev dgram`: each Ethernet frame is a datagram, as in QEMU.
public final class DgramNetBackend: KeptNetBackend {
    /// What is connected by datagrams.
    enum Ends {
        case addresses(SocketAddress, SocketAddress)
        /// A multicast group, whose address is the last, by an interface of the host's.
        case group(MulticastGroup, interface: String?, SocketAddress)
        /// A socket that the command line names, which knows its peer or is given one.
        case descriptor(Int32, remote: SocketAddress?)
    }

    private let loop: EventLoop
    private var fd: Int32 = -1
    private let serial = PreservedFDs.newSerial()
    /// Where frames go; nil when the socket knows.
    private var remote: DatagramPeer?
    private var reader: FrameReader?
    /// The socket's file that this process is to remove.
    private var file: SocketFile?
    /// The one that the process before has made, which is this one's from the commit on.
    private var inheritedFile: SocketFile?
    private let local: SocketAddress?

    /// - Parameter heritage: what the process before left, instead of opening.
    init(id: String, _ ends: Ends, vm: VirtualMachine, heritage: NetHeritage?) throws(VMMError) {
        loop = vm.loop
        let peer: SocketAddress?
        switch ends {
        case .addresses(let from, let to): (local, peer) = (from, to)
        case .group(_, _, let address): (local, peer) = (nil, address)
        case .descriptor(_, let remote): (local, peer) = (nil, remote)
        }
        super.init(id: id, backend: "dgram", vm: vm)
        if let peer { remote = try DatagramPeer(peer) }
        if let heritage {
            let held = try heritage.state.bytes("held", count: 0...NetBackend.maxFrame)
            try heritage.state.finish()
            fd = heritage.claim("socket") ?? -1
            guard DescriptorKind.isDatagramSocket(fd) else { throw heritage.mismatch("has lost its datagram socket") }
            inheritedFile = local.flatMap { SocketFile($0) }
            startReading(held: held)
            return
        }
        switch ends {
        case .addresses(let address, _):
            fd = try address.bindDatagram()
            file = SocketFile(address)
        case .group(let group, let interface, _):
            do throws(VMMError) {
                fd = try group.join(interface: interface)
            } catch {
                throw error.prefixed("netdev '\(id)'")
            }
        case .descriptor(let given, _):
            guard DescriptorKind.isDatagramSocket(given) else {
                throw VMMError("netdev '\(id)': fd \(given) is not an open datagram socket")
            }
            fd = given
            try FD.setNonBlocking(fd, true)
            try FD.setCloseOnExec(fd, true)
        }
        startReading(held: [])
    }

    private func startReading(held: [UInt8]) {
        reader = FrameReader(
            fd: fd, loop: loop, held: held, deliver: { [unowned self] frame, _ in deliver(frame) },
            failed: { [unowned self] in Report.warning("netdev \(self.id): \($0.message)") })
    }

    deinit { shutDown() }

    public override func receiveReady() { reader?.ready() }

    public override func send(_ parts: UnsafeBufferPointer<UnsafeRawBufferPointer>) {
        let frame = NetBackend.scratch
        guard fd >= 0, let end = NetBackend.gather(parts, into: frame, at: 0) else { return }
        let bytes = UnsafeRawBufferPointer(rebasing: frame[..<end])
        let flags = Int32(MSG_NOSIGNAL) | Int32(MSG_DONTWAIT)
        let count = retryingInterrupts {
            remote?.send(bytes, by: fd) ?? Glibc.send(fd, bytes.baseAddress, bytes.count, flags)
        }
        // Nobody there, or one who does not keep up.
        if count < 0 { Log.trace("net_backend_drop", "\(id): \(VMMError.system("send failed").message)") }
    }

    override func handOver(to cpr: CprController) throws(VMMError) {
        guard fd >= 0 else { return }
        cpr.save(fd, of: self, as: "socket", serial: serial)
        cpr.handOver(self) { $0.put("held", bytes: reader?.held ?? []) }
    }

    override func takeOver(_ changes: PartChanges) throws(VMMError) {
        guard let state = changes.state else { return }
        let held = try state.bytes("held", count: 0...NetBackend.maxFrame)
        if case .unchanged = NetHeritage.descriptor("socket", of: id, in: changes) { return startReading(held: held) }
        throw VMMError("the socket is another now", hint: "Try the update again.")
    }

    override func committed() {
        if file == nil { file = inheritedFile }
    }

    public override func shutDown() {
        reader?.stop()
        reader = nil
        guard fd >= 0 else { return }
        close(fd)
        fd = -1
        file?.remove()
    }
}
