import BatonRuntime
import Glibc

/// virtio-net (virtio 1.3, 5.1) on a net back end: a pair of queues for each
/// queue of the back end with `mq=on`, else one pair; a control queue; and
/// offloads where the back end's frames have headers.
public final class VirtioNet: VirtioDevice {
    let backend: NetBackend
    private let loop: EventLoop
    /// Pairs of queues that there are, and that the driver uses.
    private let pairCount: Int
    private(set) var activePairs = 1
    var filter: ReceiveFilter
    /// Feature bits of what the host may leave undone; nil as long as the
    /// driver has not said: all that it has negotiated.
    private var chosenOffloads: UInt64?
    private let permanentAddress: UInt64
    /// Of the back end.
    private var hasLink: Bool
    private(set) lazy var linkChange = LinkChange(of: self) { [unowned self] in
        setLink()
        configChanged()
    }
    /// Of the frame that is being sent; every card's, as each sends at once.
    private nonisolated(unsafe) static let parts =
        UnsafeMutablePointer<UnsafeRawBufferPointer>.allocate(capacity: VirtQueue.maxSegments)

    private static let headerSize = 12
    /// An Ethernet header and a tag with the largest IP packet.
    static let maxFrame = 65_553

    /// - Parameters:
    ///   - mac: six bytes.
    ///   - features: `VirtioNetFeature`; those are left out that the back end does not have.
    public init(
        vm: VirtualMachine, backend: NetBackend, mac: [UInt8], features requested: UInt64 = VirtioNetFeature.standard
    ) {
        self.backend = backend
        hasLink = backend.linkUp
        loop = vm.loop
        let features = VirtioNetFeature.offered(requested, by: backend)
        pairCount = features & VirtioNetFeature.multipleQueues != 0 ? max(1, backend.queueCount) : 1
        permanentAddress = ReceiveFilter.address(mac.prefix(6))
        filter = ReceiveFilter(address: permanentAddress)
        var config = [UInt8](repeating: 0, count: 12)
        for (index, byte) in mac.prefix(6).enumerated() { config[index] = byte }
        config.put(UInt16(hasLink ? 1 : 0), at: LinkChange.statusOffset)
        config.put(UInt16(truncatingIfNeeded: pairCount), at: 8)
        var sizes = [UInt16](repeating: 256, count: 2 * pairCount)
        if features & VirtioNetFeature.controlQueue != 0 { sizes.append(64) }
        super.init(model: "virtio-net", deviceID: 1, vm: vm, features: features, queueSizes: sizes, config: config)
        backend.cardAddress = Array(mac.prefix(6))
        backend.receiver = { [unowned self] frame, header, pair in receive(frame, header, pair) }
        backend.linkChanged = { [unowned self] up in
            hasLink = up
            if setLink() { configChanged() }
        }
    }

    /// Gives the back end back: another card may use it. The card is reset, and is used no more.
    func detach() {
        backend.receiver = nil
        backend.linkChanged = nil
        backend.cardAddress = []
    }

    /// Sets the card's status to what the driver is to see of the link.
    /// - Returns: whether it is another now.
    @discardableResult
    func setLink() -> Bool {
        let value = linkChange.status(linkUp: hasLink)
        defer { config[LinkChange.statusOffset] = value }
        return config[LinkChange.statusOffset] != value
    }

    override func readConfig(offset: Int, width: Int) -> UInt64 {
        defer { linkChange.driverRead(offset: offset, width: width) }
        return super.readConfig(offset: offset, width: width)
    }

    public override func handle(_ queue: VirtQueue) {
        if queue.index == controlIndex { return serveControl(queue, carryOut) }
        let pair = queue.index / 2
        // Of a pair that is not in use the driver may fill queues beforehand.
        guard pair < activePairs else { return }
        if queue.index % 2 == 1 {
            transmit(queue, pair)
        } else if isRunning {
            backend.receiveReady(queue: pair)
        }
    }

    /// Behind the last pair, or the first one if the driver knows no more
    /// (virtio 1.3, 5.1.2).
    private var controlIndex: Int? {
        guard has(VirtioNetFeature.controlQueue) else { return nil }
        return has(VirtioNetFeature.multipleQueues) ? 2 * pairCount : 2
    }

    // MARK: What the driver chooses

    public override func driverReady() { backend.allow(VirtioNetFeature.offloads(guestOffloads)) }

    public override func resetDevice() {
        linkChange.reset()
        setLink()
        chosenOffloads = nil
        filter = ReceiveFilter(address: permanentAddress)
        setAddress(permanentAddress)
        backend.allow([])
        usePairs(1)
    }

    /// Feature bits of what the host may leave undone.
    var guestOffloads: UInt64 {
        get { chosenOffloads ?? driverFeatures & VirtioNetFeature.guestOffloads }
        set { chosenOffloads = newValue }
    }

    func setAddress(_ address: UInt64) {
        filter.address = address
        for index in 0..<6 { config[index] = UInt8(truncatingIfNeeded: address >> UInt64(40 - 8 * index)) }
    }

    /// - Returns: false when there are not as many; nothing has changed then.
    @discardableResult
    func usePairs(_ count: Int) -> Bool {
        guard (1...pairCount).contains(count), backend.useQueues(count) else { return false }
        let before = activePairs
        activePairs = count
        for pair in min(before, count)..<count {
            if queues[2 * pair + 1].hasAvailable { handle(queues[2 * pair + 1]) }
            if isRunning { backend.receiveReady(queue: pair) }
        }
        return true
    }

    // MARK: From the guest

    private func transmit(_ queue: VirtQueue, _ pair: Int) {
        serveChains(queue) { chain in
            let length = chain.readableBytes &- VirtioNet.headerSize
            guard length >= 0 else {
                fail("frame without a header")
                return .stopped
            }
            if length < 14 || length > VirtioNet.maxFrame {
                Log.guestError("\(stateName): frame of \(length) bytes dropped")
            } else {
                send(queue, chain, pair)
            }
            return .used(0)
        }
    }

    private func send(_ queue: VirtQueue, _ chain: VirtioChain, _ pair: Int) {
        var header = FrameHeader()
        if backend.carriesHeaders {
            _ = withUnsafeMutableBytes(of: &header) { queue.copyOut(chain, offset: 0, to: $0) }
            header.flags &= FrameHeader.needsChecksum
            guard VirtioNetFeature.allows(VirtioNetFeature.hostOffloads(driverFeatures), header) else {
                return Log.guestError("\(stateName): frame with offloads that were not negotiated dropped")
            }
        }
        let parts = VirtioNet.parts
        var skip = VirtioNet.headerSize
        var count = 0
        for segment in queue.readable(chain) {
            if skip >= segment.iov_len {
                skip &-= segment.iov_len
                continue
            }
            parts[count] = UnsafeRawBufferPointer(
                start: segment.iov_base.map { UnsafeRawPointer($0 + skip) }, count: segment.iov_len &- skip)
            count &+= 1
            skip = 0
        }
        backend.send(UnsafeBufferPointer(start: parts, count: count), header: header, queue: pair)
    }

    // MARK: To the guest

    /// - Returns: false when there is no room: the back end keeps the frame.
    private func receive(_ frame: UnsafeRawBufferPointer, _ header: FrameHeader, _ pair: Int) -> Bool {
        guard isRunning else { return false }
        // A card that is not in use hears nothing.
        guard isOperating, pair < activePairs, queues[2 * pair].ready else { return true }
        guard frame.count > 0, frame.count <= VirtioNet.maxFrame, filter.accepts(frame) else { return true }
        var header = header
        header.flags &=
            FrameHeader.needsChecksum | (has(VirtioNetFeature.guestChecksum) ? FrameHeader.checksumValid : 0)
        // Was on its way when the driver took the permission back.
        guard VirtioNetFeature.allows(VirtioNetFeature.offloads(guestOffloads), header) else { return true }
        let queue = queues[2 * pair]
        if deliver(frame, header, queue) { return true }
        guard isOperating else { return true }
        return queue.enableNotifications() && deliver(frame, header, queue)
    }

    private func deliver(_ frame: UnsafeRawBufferPointer, _ header: FrameHeader, _ queue: VirtQueue) -> Bool {
        let mergeable = has(VirtioNetFeature.mergeableBuffers)
        var firstHeader: UnsafeMutableRawPointer?
        var buffers: UInt16 = 0
        var done = 0
        while done < frame.count {
            guard let chain = queue.next() else {
                queue.unconsume(Int(buffers))
                return false
            }
            let skip = buffers == 0 ? VirtioNet.headerSize : 0
            guard chain.writableBytes > skip else {
                queue.unconsume(Int(buffers))
                fail("receive buffer of \(chain.writableBytes) bytes")
                return true
            }
            if buffers == 0 {
                guard let place = write(header, queue, chain) else { return true }
                firstHeader = place
            }
            let rest = UnsafeRawBufferPointer(rebasing: frame[done...])
            let count = queue.copyIn(chain, offset: skip, from: rest)
            done &+= count
            queue.consume()
            queue.fill(chain.head, written: skip &+ count, at: buffers)
            buffers &+= 1
            if done < frame.count && !mergeable {
                // Not room enough in the buffer: the frame is dropped, and the
                // buffer used again.
                Log.guestError("\(stateName): frame of \(frame.count) bytes in a buffer of \(chain.writableBytes)")
                queue.unconsume(1)
                return true
            }
        }
        if mergeable, buffers > 1, let firstHeader {
            firstHeader.storeBytes(of: buffers, toByteOffset: 10, as: UInt16.self)
        }
        queue.publish(buffers)
        queue.signal()
        return true
    }

    /// Writes the header at the start of the first buffer, for one buffer.
    /// - Returns: the header's host address, for the number of buffers; it must
    ///   be in one piece (nil: the device has failed).
    private func write(
        _ header: FrameHeader, _ queue: VirtQueue, _ chain: VirtioChain
    ) -> UnsafeMutableRawPointer? {
        var bytes: (UInt64, UInt32) = (0, 1 << 16)
        withUnsafeMutableBytes(of: &bytes) {
            header.store(to: $0)
            _ = queue.copyIn(chain, offset: 0, from: UnsafeRawBufferPointer(rebasing: $0[..<VirtioNet.headerSize]))
        }
        guard let first = queue.writable(chain).first, let base = first.iov_base,
            first.iov_len >= VirtioNet.headerSize || !has(VirtioNetFeature.mergeableBuffers)
        else {
            fail("receive buffer whose header is in several pieces")
            return nil
        }
        return base
    }

    // MARK: State

    public override func pauseDevice() { linkChange.pause() }

    public override func resumeDevice() {
        linkChange.resume()
        backend.allow(VirtioNetFeature.offloads(guestOffloads))
        backend.useQueues(activePairs)
        // There may be many cards, and the guest has waited long enough.
        loop.later { [weak self] in
            guard let self, isRunning else { return }
            for pair in 0..<activePairs { backend.receiveReady(queue: pair) }
        }
    }

    public override func saveDevice(to writer: inout StateWriter) {
        writer.put("link-up", config[LinkChange.statusOffset] & 1 != 0)
        linkChange.save(to: &writer)
        guard offeredFeatures & VirtioNetFeature.controlQueue != 0 else { return }
        writer.put("queue-pairs", UInt64(activePairs))
        writer.put("guest-offloads", guestOffloads)
        filter.save(to: &writer)
    }

    public override func loadDevice(from reader: StateReader) throws(VMMError) -> () -> Void {
        // The link may have changed over the restart; the generation that the
        // driver sees must change with it.
        let up = try reader.bool("link-up")
        let applyLinkChange = try linkChange.loader(from: reader)
        func applyLink() {
            applyLinkChange()
            setLink()
            let now = config[LinkChange.statusOffset] & 1 != 0
            if up != now { configChanged() }
        }
        guard offeredFeatures & VirtioNetFeature.controlQueue != 0 else { return applyLink }
        let features = try reader.unsigned("features")
        let most = features & VirtioNetFeature.multipleQueues != 0 ? pairCount : 1
        let pairs = Int(try reader.unsigned("queue-pairs", in: 1...UInt64(most)))
        let offloads = try reader.unsigned("guest-offloads")
        guard offloads & ~(features & VirtioNetFeature.guestOffloads) == 0 else {
            throw VMMError("field 'guest-offloads' of section '\(reader.section)' has bits that were not negotiated")
        }
        let loaded = try ReceiveFilter(from: reader)
        return { [self] in
            activePairs = pairs
            chosenOffloads = offloads == features & VirtioNetFeature.guestOffloads ? nil : offloads
            filter = loaded
            setAddress(loaded.address)
            applyLink()
        }
    }
}
