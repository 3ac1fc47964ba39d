import BatonRuntime
import Glibc

/// What of a device crosses an update beside its checkpoint section: the
/// back end's properties and this side's descriptors. The connection itself is
/// the chardev's to hand over.
///
/// Descriptors are named `vhost-user-CHARDEV-…`: `kick` and `call` with the
/// queue's number as the id, `error`, `requests`, `inflight`. The rest is the
/// part `vhost-user/CHARDEV`.
struct VhostUserHeritage {
    static let prefix = "vhost-user-"

    var features: UInt64
    var backend: BackendProperties
    var hasMemoryTable: Bool
    var isServing: Bool
    var served: [VirtioQueueSetup]
    var hasUntrackedRequests: Bool
    var trackers: [RingTracker?]
    var pendingRequest: [UInt8]
    var kicks: [Int32] = []
    var calls: [Int32] = []
    var errorEvent: Int32 = -1
    var requestSocket: Int32 = -1
    var inflight: InflightMemory?

    static func part(_ chardev: Chardev) -> String { "vhost-user/\(chardev.id)" }
    static func fd(_ chardev: Chardev, _ what: String) -> String { "\(prefix)\(chardev.id)-\(what)" }

    /// - Returns: nil in a fresh start, and for a device that the process
    ///   before did not have.
    static func find(chardev: Chardev, kind: DeviceKind, vm: VirtualMachine) throws(VMMError) -> VhostUserHeritage? {
        guard let cpr = vm.cpr, let state = try cpr.inherited?.part(part(chardev)) else { return nil }
        let model = try state.string("model")
        guard model == kind.model else {
            throw VMMError(
                "chardev '\(chardev.id)' served a '\(model)' in the CPR state, "
                    + "but a '\(kind.model)' on the command line",
                hint: "Give the new VMM the devices of the old one.")
        }
        return try VhostUserHeritage(state, chardev: chardev, kind: kind) { what, id throws(VMMError) in
            try VhostUserHeritage.claim(what, id, chardev, cpr)
        }
    }

    /// - Parameter claim: gives a descriptor, which is the device's from then on.
    fileprivate init(
        _ state: StateReader, chardev: Chardev, kind: DeviceKind,
        claim: (_ what: String, _ id: Int) throws(VMMError) -> Int32
    ) throws(VMMError) {
        let count = UInt64(kind.queueCount)
        _ = try state.unsigned("queues", in: count...count)
        features = try state.unsigned("features")
        backend = BackendProperties(
            features: try state.unsigned("backend-features"),
            protocolFeatures: try state.unsigned("protocol-features"),
            config: try state.bytes("config", count: kind.backendConfigSize...kind.backendConfigSize))
        hasMemoryTable = try state.bool("has-memory-table")
        isServing = try state.bool("serving")
        hasUntrackedRequests = try state.bool("untracked-requests")
        served = []
        trackers = [RingTracker?](repeating: nil, count: kind.queueCount)
        for index in try state.array("served", count: 0...kind.queueCount) {
            guard index < count else { throw VMMError("part '\(state.section)' has a queue \(index)") }
            let rings = try state.array("queue\(index)", count: 4...4)
            guard rings[0] <= 1024 else { throw VMMError("part '\(state.section)' has a queue of \(rings[0])") }
            served.append(
                VirtioQueueSetup(
                    index: Int(index), size: UInt16(rings[0]), descriptors: rings[1], available: rings[2],
                    used: rings[3]))
            let tracker = try state.array("tracker\(index)", count: 0...3 + 1024)
            if !tracker.isEmpty { trackers[Int(index)] = RingTracker(fields: tracker) }
        }
        pendingRequest = try state.bytes("pending-request", count: 0...VhostUser.headerSize + VhostUser.maxPayload)
        guard VhostUserDevice.missingBytes(after: pendingRequest) ?? 0 > 0 else {
            throw VMMError("part '\(state.section)' has a request that is complete or too long")
        }
        for index in 0..<kind.queueCount {
            kicks.append(try claim("kick", index))
            calls.append(try claim("call", index))
        }
        errorEvent = try claim("error", 0)
        if try state.bool("has-requests") { requestSocket = try claim("requests", 0) }
        let memory = try state.array("inflight", count: 0...4)
        if memory.count == 4 {
            inflight = InflightMemory(
                fd: memory[0] > 0 ? try claim("inflight", 0) : -1,
                size: memory[0], offset: memory[1], queues: UInt16(truncatingIfNeeded: memory[2]),
                queueSize: UInt16(truncatingIfNeeded: memory[3]))
        }
        let isConnected = try state.bool("connected")
        try state.finish()
        guard !isConnected || (chardev.isInherited && chardev.connectionDescriptor != nil) else {
            throw VMMError(
                "chardev '\(chardev.id)' does not have the connection to its vhost-user back end any more",
                hint: "Give the new VMM the chardevs of the old one, without reopen-on-cpr.")
        }
        guard isConnected || !isServing else { throw VMMError("part '\(state.section)' contradicts itself") }
    }

    /// Takes over a descriptor, which is the device's from now on.
    private static func claim(
        _ what: String, _ id: Int, _ chardev: Chardev, _ cpr: CprController
    ) throws(VMMError) -> Int32 {
        let name = fd(chardev, what)
        guard let found = cpr.fds.find(name, id: id) else {
            throw VMMError("the CPR state lacks the descriptor '\(name)' id \(id)")
        }
        cpr.fds.delete(name, id: id)
        return found
    }
}

extension VhostUserDevice {
    /// Takes over what has changed since this process was executed.
    func takeOver(_ changes: PartChanges) throws(VMMError) {
        guard let state = changes.state else { return }
        _ = try state.string("model")
        let heritage = try VhostUserHeritage(state, chardev: chardev, kind: kind) { what, id throws(VMMError) in
            let own =
                switch what {
                case "kick": events.kicks[id]
                case "call": events.calls[id]
                case "error": events.error
                case "requests": requestSocket
                default: inflight?.fd ?? -1
                }
            switch changes.descriptor(VhostUserHeritage.fd(chardev, what), id: id) {
            case .new(let fd) where ["requests", "inflight"].contains(what):
                if own >= 0 { close(own) }
                return fd
            case .unchanged where own >= 0: return own
            default: throw VMMError("the descriptor '\(what)' id \(id) is another now", hint: "Try the update again.")
            }
        }
        guard heritage.features == features else { throw VMMError("its features are others now") }
        adopt(heritage)
    }

    /// Saves the descriptors and hands over the rest. Nothing changes here:
    /// the guest may come back to this process.
    func handOver(to cpr: CprController) throws(VMMError) {
        func save(_ what: String, _ id: Int, _ fd: Int32) throws(VMMError) {
            try cpr.fds.resave(VhostUserHeritage.fd(chardev, what), id: id, fd)
        }
        for index in events.kicks.indices {
            try save("kick", index, events.kicks[index])
            try save("call", index, events.calls[index])
        }
        try save("error", 0, events.error)
        if requestSocket >= 0 { try save("requests", 0, requestSocket) }
        if let inflight, inflight.fd >= 0 { try save("inflight", 0, inflight.fd) }
        var state = StateWriter()
        state.put("model", kind.model)
        state.put("queues", UInt64(kind.queueCount))
        state.put("features", features)
        state.put("backend-features", backend.features)
        state.put("protocol-features", backend.protocolFeatures)
        state.put("config", bytes: backendConfig)
        state.put("connected", channel != nil)
        state.put("has-memory-table", hasMemoryTable)
        state.put("serving", isServing)
        state.put("served", served.map { UInt64($0.index) })
        for queue in served {
            state.put("queue\(queue.index)", [UInt64(queue.size), queue.descriptors, queue.available, queue.used])
            state.put("tracker\(queue.index)", trackers[queue.index]?.fields ?? [])
        }
        state.put("untracked-requests", hasUntrackedRequests)
        state.put("has-requests", requestSocket >= 0)
        state.put("pending-request", bytes: pendingRequest)
        state.put(
            "inflight", inflight.map { [$0.size, $0.offset, UInt64($0.queues), UInt64($0.queueSize)] } ?? [])
        cpr.handOver(VhostUserHeritage.part(chardev), state)
    }

    // MARK: Checkpoint

    func save(to writer: inout StateWriter) {
        writer.put("serving", isServing)
        writer.put("bases", bases.map { UInt64($0) })
        writer.put("backend-config", bytes: backendConfig)
    }

    func load(from reader: StateReader) throws(VMMError) -> () -> Void {
        let serving = try reader.bool("serving")
        let newBases = try reader.array("bases", count: kind.queueCount...kind.queueCount)
        guard newBases.allSatisfy({ $0 <= 0xffff }) else {
            throw VMMError("field 'bases' of section '\(reader.section)' has an index that is out of range")
        }
        // What the driver was told before stays true.
        let config = try reader.bytes("backend-config", count: kind.backendConfigSize...kind.backendConfigSize)
        guard serving == isServing else {
            throw VMMError(
                "section '\(reader.section)': the queues are "
                    + (serving ? "served over a connection that this process does not have" : "not served"),
                hint: "A checkpoint of the restart mode belongs to the VMM that is executed by cpr-exec.")
        }
        return { [self] in
            bases = newBases.map { UInt16(truncatingIfNeeded: $0) }
            if config != backendConfig { host?.configChanged(self.config) }
            if !isSuccessor { lostConnections() }
        }
    }
}
