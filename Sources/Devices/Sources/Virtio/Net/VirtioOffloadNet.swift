import BatonRuntime

/// virtio-net whose frames somebody else carries. Of several pairs of queues
/// the driver uses as many as it says on the control queue, which is served
/// here (virtio 1.3, 5.1.6.5.5).
final class VirtioOffloadNet: VirtioOffloadDevice {
    private let net: any NetOffload
    private let pairCount: Int
    private var activePairs = 1
    /// Of the offload.
    private var hasLink: Bool
    private lazy var linkChange = LinkChange(of: self) { [unowned self] in
        setLink()
        configChanged()
    }

    init(vm: VirtualMachine, offload: any NetOffload) {
        net = offload
        hasLink = VirtioOffloadNet.hasLink(offload.config)
        let hasPairs = offload.features & VirtioNetFeature.multipleQueues != 0
        pairCount = hasPairs ? offload.queueSizes.count / 2 : 1
        super.init(
            vm: vm, offload: offload, ownFeatures: hasPairs ? VirtioNetFeature.controlQueue : 0,
            ownQueues: hasPairs ? [64] : [])
    }

    /// Behind the last pair, or the first one if the driver knows no more
    /// (virtio 1.3, 5.1.2).
    private var controlIndex: Int? {
        guard has(VirtioNetFeature.controlQueue) else { return nil }
        return has(VirtioNetFeature.multipleQueues) ? 2 * pairCount : 2
    }

    override func isServedOutside(_ queue: VirtQueue) -> Bool {
        queue.index < 2 * (has(VirtioNetFeature.multipleQueues) ? pairCount : 1)
    }

    override func handle(_ queue: VirtQueue) {
        if queue.index == controlIndex { return serveControl(queue, carryOut) }
        if isServedOutside(queue) { super.handle(queue) }
    }

    override func resetDevice() {
        activePairs = 1
        super.resetDevice()
        linkChange.reset()
        setLink()
    }

    override func pauseDevice() {
        linkChange.pause()
        super.pauseDevice()
    }

    override func resumeDevice() {
        super.resumeDevice()
        linkChange.resume()
    }

    // MARK: The link

    private static func hasLink(_ config: [UInt8]) -> Bool {
        config.count > LinkChange.statusOffset && config[LinkChange.statusOffset] & 1 != 0
    }

    /// Sets the card's status to what the driver is to see of the link.
    private func setLink() {
        guard config.count > LinkChange.statusOffset else { return }
        config[LinkChange.statusOffset] = linkChange.status(linkUp: hasLink)
    }

    override func configChanged(_ config: [UInt8]) {
        hasLink = VirtioOffloadNet.hasLink(config)
        self.config = config
        setLink()
        configChanged()
    }

    override func readConfig(offset: Int, width: Int) -> UInt64 {
        defer { linkChange.driverRead(offset: offset, width: width) }
        return super.readConfig(offset: offset, width: width)
    }

    /// VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET is all that was offered.
    private func carryOut(_ request: inout NetControlRequest) -> Bool {
        guard request.kind == NetControlRequest.Class.queues, request.command == 0, request.remaining == 2,
            has(VirtioNetFeature.multipleQueues), let pairs = request.number(UInt16.self),
            (1...pairCount).contains(Int(pairs))
        else { return false }
        activePairs = Int(pairs)
        net.usePairs(activePairs)
        return true
    }

    // MARK: State

    override func saveDevice(to writer: inout StateWriter) {
        writer.put("queue-pairs", UInt64(activePairs))
        linkChange.save(to: &writer)
        super.saveDevice(to: &writer)
    }

    override func loadDevice(from reader: StateReader) throws(VMMError) -> () -> Void {
        let pairs = Int(try reader.unsigned("queue-pairs", in: 1...UInt64(pairCount)))
        let applyLinkChange = try linkChange.loader(from: reader)
        let apply = try super.loadDevice(from: reader)
        return { [self] in
            activePairs = pairs
            apply()
            applyLinkChange()
            setLink()
            net.usePairs(pairs)
        }
    }
}
