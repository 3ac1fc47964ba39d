import BatonRuntime
import Glibc

/// virtio-scsi (virtio 1.2, 5.6): a bus with up to 255 targets, whose disks' requests are carried out as virtio-blk's.
public final class VirtioSCSI: VirtioStorage, DeviceBus {
    /// What `-device` says.
    public struct Properties {
        /// Queues of requests.
        public var queueCount = 1
        /// Chains that fit into a queue: a power of two from 2 to 1024.
        public var queueSize: UInt16 = 256
        /// Sectors of 512 bytes in a request, and requests to a disk at a time: the driver's to keep to.
        public var maxSectors: UInt32 = 0xffff
        public var commandsPerLUN: UInt32 = 128
        public init() {}
    }

    /// VIRTIO_SCSI_F_HOTPLUG: the driver is told of disks that come and go.
    static let hotPlugFeature: UInt64 = 1 << 1
    /// VIRTIO_SCSI_F_CHANGE: the driver is told of other sizes.
    static let changeFeature: UInt64 = 1 << 2

    enum Queue {
        static let control = 0
        static let events = 1
        static let firstRequests = 2
    }

    private enum Field {
        static let queueCount = 0
        static let segmentMax = 4
        static let maxSectors = 8
        static let commandsPerLUN = 12
        static let eventSize = 16
        static let senseSize = 20
        static let commandSize = 24
        static let maxTarget = 30
        static let maxLUN = 32
        static let size = 36
    }

    /// Bytes of sense data in a response.
    static let senseSize = 96
    private static let eventSize = 16
    static let maxTarget = 255
    static let maxLUN = 16383

    public static let busType = "SCSI"
    public let busName: String
    /// How a disk that finds no place is refused is the device's own matter.
    public var isFull: Bool { false }
    public var hotPlugRefusal: VMMError? { nil }
    public var unplugsAtOnce: Bool { true }

    private(set) var disks: [SCSIDisk] = []
    /// By target, its disks' places in `disks`.
    private var targets: [[Int]] = Array(repeating: [], count: VirtioSCSI.maxTarget + 1)
    /// Places of disks that the command line has and the machine has not any more: not to be given to those after them.
    private var passedOver: Set<UInt64> = []
    /// Disks that have come or gone, of which the driver is still to be told, in order.
    private var comingsAndGoings: [ComingOrGoing] = []

    /// A disk's place, and the event's reason (virtio 1.2, 5.6.6.3).
    private struct ComingOrGoing: Equatable {
        static let rescan: UInt64 = 1
        static let removed: UInt64 = 2
        var place: UInt64
        var reason: UInt64
    }
    /// Room for a request and a response.
    let scratch: UnsafeMutableRawBufferPointer
    /// A control request waits until nothing is in hand.
    var isControlWaiting = false

    public init(vm: VirtualMachine, properties: Properties = Properties(), busName: String = "scsi.0") {
        self.busName = busName
        scratch = .allocate(byteCount: 256, alignment: 16)
        scratch.initializeMemory(as: UInt8.self, repeating: 0)
        let count = properties.queueCount
        var config = [UInt8](repeating: 0, count: Field.size)
        config.put(UInt32(count), at: Field.queueCount)
        config.put(UInt32(properties.queueSize) - 2, at: Field.segmentMax)
        config.put(properties.maxSectors, at: Field.maxSectors)
        config.put(properties.commandsPerLUN, at: Field.commandsPerLUN)
        config.put(UInt32(VirtioSCSI.eventSize), at: Field.eventSize)
        config.put(UInt32(VirtioSCSI.senseSize), at: Field.senseSize)
        config.put(UInt32(SCSICommand.size), at: Field.commandSize)
        config.put(UInt16(VirtioSCSI.maxTarget), at: Field.maxTarget)
        config.put(UInt32(VirtioSCSI.maxLUN), at: Field.maxLUN)
        super.init(
            model: "virtio-scsi", deviceID: 8, vm: vm, features: VirtioSCSI.changeFeature | VirtioSCSI.hotPlugFeature,
            queueSizes: Array(repeating: properties.queueSize, count: Queue.firstRequests + count), config: config,
            requests: count * Int(properties.queueSize))
    }

    deinit {
        for disk in disks { VirtioStorage.letGo(disk.backend) }
        scratch.deallocate()
    }

    // MARK: Disks

    /// Where a disk is to be; nil for the first free place.
    struct Address {
        var channel: UInt64?
        var target: UInt64?
        var lun: UInt64?
    }

    /// The place that a disk gets, by QEMU's rules.
    func place(_ address: Address) throws(VMMError) -> (target: UInt8, lun: UInt16) {
        if let channel = address.channel, channel > 0 { throw VMMError("bad scsi channel id: \(channel)") }
        if let target = address.target, target > UInt64(VirtioSCSI.maxTarget) {
            throw VMMError("bad scsi device id: \(target)")
        }
        if let lun = address.lun, lun > UInt64(VirtioSCSI.maxLUN) { throw VMMError("bad scsi device lun: \(lun)") }
        func isFree(_ target: Int, _ lun: UInt16) -> Bool { !targets[target].contains { disks[$0].lun == lun } }
        guard let target = address.target.map({ Int($0) }) else {
            let lun = UInt16(address.lun ?? 0)
            func isOwn(_ target: Int) -> Bool { !passedOver.contains(VirtioSCSI.word(UInt8(target), lun)) }
            guard let target = targets.indices.first(where: { isFree($0, lun) && isOwn($0) }) else {
                throw VMMError("no free target")
            }
            return (UInt8(target), lun)
        }
        if let lun = address.lun {
            guard isFree(target, UInt16(lun)) else { throw VMMError("lun already used by another disk") }
            return (UInt8(target), UInt16(lun))
        }
        let luns = 0...UInt16(VirtioSCSI.maxLUN)
        guard
            let lun = luns.first(where: {
                isFree(target, $0) && !passedOver.contains(VirtioSCSI.word(UInt8(target), $0))
            })
        else {
            throw VMMError("no free lun")
        }
        return (UInt8(target), lun)
    }

    /// Plugs a disk at a free place. A driver that is at work is told of it.
    func plug(_ disk: SCSIDisk) {
        targets[Int(disk.target)].append(disks.count)
        disks.append(disk)
        use(disk.backend) { [unowned(unsafe) self] in completed($0) }
        disk.backend.onResize = { [unowned(unsafe) self, unowned(unsafe) disk] in resized(disk) }
        changed(disk, ComingOrGoing.rescan)
    }

    /// Takes a disk away, and tells the driver. Waits for what is in hand.
    func unplug(_ disk: SCSIDisk) {
        guard let index = disks.firstIndex(where: { $0 === disk }) else { return }
        // Requests name disks by their places here, so those of all disks end.
        let wasHeld = isHeld
        if !wasHeld { hold() }
        for other in disks { other.backend.finish() }
        VirtioStorage.letGo(disk.backend)
        disk.backend.user = nil
        disks.remove(at: index)
        for target in targets.indices { targets[target] = disks.indices.filter { disks[$0].target == UInt8(target) } }
        if !wasHeld { release() }
        changed(disk, ComingOrGoing.removed)
    }

    /// Keeps the place of a disk that is not there any more from those that are made after it.
    func passOver(_ place: (target: UInt8, lun: UInt16)) { passedOver.insert(VirtioSCSI.word(place.target, place.lun)) }

    /// Where in `disks` a logical unit is; nil when it is not there.
    func index(target: UInt8, lun: UInt16) -> Int? { targets[Int(target)].first { disks[$0].lun == lun } }

    /// The logical units of a target; empty when there is no such target.
    func luns(of target: UInt8) -> [UInt16] { targets[Int(target)].map { disks[$0].lun }.sorted() }

    override var backends: [BlockBackend] { disks.map(\.backend) }
    override func submit() { for disk in disks where disk.backend.inHand > 0 { disk.backend.submit() } }
    override func start(_ chain: VirtioChain, _ queue: VirtQueue) -> Bool { startRequest(chain, queue) }

    // MARK: VirtioDevice

    public override func handle(_ queue: VirtQueue) {
        switch queue.index {
        case Queue.control: serveControl(queue)
        case Queue.events: sendEvents()
        default: serve(queue)
        }
    }

    public override func writeConfig(offset: Int, width: Int, value: UInt64) {
        // Drivers write what they found.
        let isOwn =
            (offset == Field.senseSize && value == UInt64(VirtioSCSI.senseSize))
            || (offset == Field.commandSize && value == UInt64(SCSICommand.size))
        guard width == 4, isOwn else { return super.writeConfig(offset: offset, width: width, value: value) }
    }

    override func batchEnded() {
        super.batchEnded()
        if isControlWaiting, isRunning { serveControl(queues[Queue.control]) }
    }

    // MARK: Events

    private func resized(_ disk: SCSIDisk) {
        disk.owesAttention = true
        disk.owesEvent = true
        sendEvents()
    }

    /// A driver that is not at work yet finds what there is.
    private func changed(_ disk: SCSIDisk, _ reason: UInt64) {
        guard isOperating, has(VirtioSCSI.hotPlugFeature) else { return }
        let change = ComingOrGoing(place: VirtioSCSI.word(disk.target, disk.lun), reason: reason)
        // However often it comes and goes, once each is enough.
        comingsAndGoings.removeAll { $0 == change }
        comingsAndGoings.append(change)
        sendEvents()
    }

    private enum Event {
        static let transportReset: UInt32 = 1
        static let parameterChange: UInt32 = 3
    }

    /// Tells the driver what has changed, as far as it has buffers. With the machine stopped, `resume` comes back to it.
    private func sendEvents() {
        guard isRunning, isOperating else { return }
        let queue = queues[Queue.events]
        defer { queue.signal() }
        while let change = comingsAndGoings.first {
            guard send(Event.transportReset, UInt32(change.reason), of: change.place, by: queue) else { return }
            comingsAndGoings.removeFirst()
        }
        guard has(VirtioSCSI.changeFeature) else { return }
        for disk in disks where disk.owesEvent {
            let sense = SCSISense.capacityChanged
            let reason = UInt32(sense.code) | UInt32(sense.qualifier) << 8
            guard send(Event.parameterChange, reason, of: word(disk), by: queue) else { return }
            disk.owesEvent = false
        }
    }

    /// - Returns: false when there is no buffer, or the driver has broken the rules.
    private func send(_ event: UInt32, _ reason: UInt32, of place: UInt64, by queue: VirtQueue) -> Bool {
        var bytes = [UInt8](repeating: 0, count: VirtioSCSI.eventSize)
        bytes.put(event, at: 0)
        (bytes[4], bytes[5]) = (1, UInt8(truncatingIfNeeded: place >> 16))
        bytes.replaceSubrange(6..<8, with: SCSIDisk.address(UInt16(truncatingIfNeeded: place)))
        bytes.put(reason, at: 12)
        return send(bytes, kind: "events", by: queue)
    }

    // MARK: State

    public override func resetDevice() {
        isControlWaiting = false
        comingsAndGoings = []
        for disk in disks { disk.reset() }
    }

    public override func resumeDevice() {
        super.resumeDevice()
        sendEvents()
    }

    /// Target and LUN of a disk in a saved state.
    private static func word(_ target: UInt8, _ lun: UInt16) -> UInt64 { UInt64(target) << 16 | UInt64(lun) }
    private func word(_ disk: SCSIDisk) -> UInt64 { VirtioSCSI.word(disk.target, disk.lun) }

    private static let changesLimit = 100_000

    public override func saveDevice(to writer: inout StateWriter) {
        writer.put("disks", disks.map(word))
        writer.put("capacities", disks.map { $0.backend.size / 512 })
        writer.put("owed", disks.map { ($0.owesEvent ? 1 : 0) | ($0.owesAttention ? 2 : 0) })
        if !comingsAndGoings.isEmpty {
            writer.put("changes", comingsAndGoings.map { $0.reason << 32 | $0.place })
        }
        saveUnfinished(to: &writer)
    }

    public override func loadDevice(from reader: StateReader) throws(VMMError) -> () -> Void {
        let places = try reader.array("disks")
        guard places == disks.map(word) else {
            throw VMMError(
                "section '\(reader.section)' is of other disks: those that it had are "
                    + places.map { "\($0 >> 16):\($0 & 0xffff)" }.joined(separator: ", "),
                hint: "Give the device the same scsi-hd and scsi-cd, in the same order.")
        }
        let capacities = try reader.array("capacities", count: disks.count...disks.count)
        let owed = try reader.array("owed", count: disks.count...disks.count)
        for (name, values, highest) in [("capacities", capacities, UInt64(Int64.max) / 512), ("owed", owed, 3)] {
            guard values.allSatisfy({ $0 <= highest }) else {
                throw VMMError("field '\(name)' of section '\(reader.section)' has an invalid value")
            }
        }
        let changes = reader.has("changes") ? try reader.array("changes", count: 0...VirtioSCSI.changesLimit) : []
        guard changes.allSatisfy({ 1...2 ~= $0 >> 32 && $0 & 0xffff_ffff <= VirtioSCSI.word(.max, .max) }) else {
            throw VMMError("field 'changes' of section '\(reader.section)' has an invalid value")
        }
        let applyUnfinished = try loadUnfinished(from: reader)
        return { [self] in
            applyUnfinished()
            comingsAndGoings = changes.map { ComingOrGoing(place: $0 & 0xffff_ffff, reason: $0 >> 32) }
            for (index, disk) in disks.enumerated() {
                disk.owesEvent = owed[index] & 1 != 0
                disk.owesAttention = owed[index] & 2 != 0
                // It may have been given another size by the process before, or by somebody else.
                disk.backend.refreshSize(known: capacities[index] * 512)
                if capacities[index] != disk.backend.size / 512 { resized(disk) }
            }
        }
    }
}
