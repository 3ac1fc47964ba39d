import BatonRuntime
import Glibc

/// What a back end said of itself when the connection was made.
struct BackendProperties {
    /// Virtio features, with `VhostUser.hasProtocolFeatures`.
    var features: UInt64
    /// The protocol features in use.
    var protocolFeatures: UInt64
    /// The configuration space; empty when the back end does not have it.
    var config: [UInt8] = []

    func has(_ feature: UInt64) -> Bool { protocolFeatures & feature != 0 }
    /// Whether queues are enabled one by one, instead of all that are started.
    var hasQueueSwitches: Bool { features & VhostUser.hasProtocolFeatures != 0 }
}

/// The messages of the front end, one method each.
extension VhostUserChannel {
    /// Makes the back end's acquaintance: features, queues and configuration.
    /// - Parameters:
    ///   - queues: how many the device needs, in what the back end counts.
    ///   - configSize: bytes of its configuration space that the back end has.
    ///   - isFirst: not one of many connections, which a back end may make.
    func negotiate(queues: Int, configSize: Int, isFirst: Bool) throws(VMMError) -> BackendProperties {
        begin(rationed: !isFirst)
        acknowledges = false
        var backend = BackendProperties(features: try getNumber(.getFeatures), protocolFeatures: 0)
        guard backend.features & 1 << 32 != 0 else {
            throw VMMError(
                "the vhost-user back end does not have VIRTIO_F_VERSION_1 (features \(Hex(backend.features)))")
        }
        if backend.features & VhostUser.hasProtocolFeatures != 0 {
            backend.protocolFeatures =
                try getNumber(.getProtocolFeatures) & VhostUser.ProtocolFeature.supported
            try set(.setProtocolFeatures, littleEndianBytes(backend.protocolFeatures))
        }
        try set(.setOwner, [])
        acknowledges = backend.has(VhostUser.ProtocolFeature.replyAck)
        let limit = backend.has(VhostUser.ProtocolFeature.multiQueue) ? try getNumber(.getQueueNum) : 1
        guard UInt64(queues) <= limit else {
            throw VMMError("The maximum number of queues supported by the backend is \(limit)")
        }
        if configSize > 0 {
            guard backend.has(VhostUser.ProtocolFeature.config) else {
                throw VMMError("the vhost-user back end does not have VHOST_USER_PROTOCOL_F_CONFIG")
            }
            backend.config = try getConfig(size: configSize)
        }
        return backend
    }

    func getConfig(size: Int) throws(VMMError) -> [UInt8] {
        let (bytes, _) = try get(.getConfig, VhostUserChannel.configRequest(size: size))
        return try configuration(bytes, size: size)
    }

    private static func configHeader(size: Int) -> [UInt8] {
        littleEndianBytes(0 as UInt32) + littleEndianBytes(UInt32(size)) + littleEndianBytes(0 as UInt32)
    }

    static func configRequest(size: Int) -> [UInt8] {
        configHeader(size: size) + [UInt8](repeating: 0, count: size)
    }

    /// The configuration space in the payload of a reply.
    func configuration(_ bytes: [UInt8], size: Int) throws(VMMError) -> [UInt8] {
        guard bytes.count == 12 + size, bytes.prefix(8).elementsEqual(Self.configHeader(size: size).prefix(8)) else {
            throw problem(.getConfig, "has a reply of \(bytes.count) bytes that is not the configuration asked for")
        }
        return Array(bytes[12...])
    }

    /// Writes to the configuration space on behalf of the driver.
    func setConfig(offset: Int, _ bytes: [UInt8]) throws(VMMError) {
        try set(
            .setConfig,
            littleEndianBytes(UInt32(offset)) + littleEndianBytes(UInt32(bytes.count))
                + littleEndianBytes(VhostUser.setConfigByDriver) + bytes)
    }

    func setMemoryTable(_ shared: SharedRegions) throws(VMMError) {
        try set(.setMemTable, shared.table, fds: shared.regions.map(\.fd))
    }

    // MARK: Queues

    private func vringState(_ index: Int, _ value: UInt32) -> [UInt8] {
        littleEndianBytes(UInt32(index)) + littleEndianBytes(value)
    }

    func setVring(_ queue: VirtioQueueSetup, base: UInt16, kick: Int32, call: Int32, error: Int32) throws(VMMError) {
        try set(.setVringNum, vringState(queue.index, UInt32(queue.size)))
        try set(.setVringBase, vringState(queue.index, UInt32(base)))
        let flagsAndLog = (flags: littleEndianBytes(0 as UInt32), log: littleEndianBytes(0 as UInt64))
        try set(
            .setVringAddr,
            littleEndianBytes(UInt32(queue.index)) + flagsAndLog.flags + littleEndianBytes(queue.descriptors)
                + littleEndianBytes(queue.used) + littleEndianBytes(queue.available) + flagsAndLog.log)
        let index = littleEndianBytes(UInt64(queue.index))
        try set(.setVringErr, index, fds: [error])
        try set(.setVringCall, index, fds: [call])
        try set(.setVringKick, index, fds: [kick])
    }

    func enableVring(_ index: Int, _ on: Bool) throws(VMMError) {
        try set(.setVringEnable, vringState(index, on ? 1 : 0))
    }

    /// Stops a queue.
    /// - Returns: the available ring's index where the back end stopped.
    func getVringBase(_ index: Int) throws(VMMError) -> UInt16 {
        let (bytes, _) = try get(.getVringBase, vringState(index, 0))
        var cursor = ByteCursor(bytes[...])
        guard let number = cursor.unsigned(UInt32.self), let base = cursor.unsigned(UInt32.self), cursor.isAtEnd,
            number == UInt32(index), let base = UInt16(exactly: base)
        else { throw problem(.getVringBase, "has a reply that is no index of queue \(index)") }
        return base
    }

    // MARK: In-flight tracking

    /// Asks the back end for memory in which it notes the requests in hand.
    func getInflight(queues: Int, size: UInt16) throws(VMMError) -> InflightMemory {
        let ask = InflightMemory(fd: -1, size: 0, offset: 0, queues: UInt16(queues), queueSize: size)
        let (bytes, fds) = try get(.getInflightFD, ask.description, fdCount: 0...1)
        var cursor = ByteCursor(bytes[...])
        guard let length = cursor.unsigned(UInt64.self), let offset = cursor.unsigned(UInt64.self),
            cursor.remaining >= 4, length == 0 || fds.count == 1
        else { throw problem(.getInflightFD, "has a reply of \(bytes.count) bytes and \(fds.count) descriptors") }
        let fd = length > 0 ? fds.take() ?? -1 : -1
        return InflightMemory(fd: fd, size: length, offset: offset, queues: UInt16(queues), queueSize: size)
    }

    func setInflight(_ memory: InflightMemory) throws(VMMError) {
        try set(.setInflightFD, memory.description, fds: [memory.fd])
    }
}

/// Where a back end notes which requests it has in hand, so that the next one
/// can go on with them. Only back ends look into it.
struct InflightMemory {
    /// Owned by whoever holds the structure; -1 when the back end has none.
    let fd: Int32
    let size: UInt64
    let offset: UInt64
    let queues: UInt16
    let queueSize: UInt16

    /// As in messages, with the four bytes that QEMU's structure ends in.
    var description: [UInt8] {
        littleEndianBytes(size) + littleEndianBytes(offset) + littleEndianBytes(queues) + littleEndianBytes(queueSize)
            + littleEndianBytes(0 as UInt32)
    }
}
