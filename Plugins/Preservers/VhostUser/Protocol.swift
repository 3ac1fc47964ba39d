import BatonRuntime

/// Numbers of the vhost-user protocol, as in QEMU's docs/interop/vhost-user.rst.
enum VhostUser {
    /// What the front end sends.
    enum Request: UInt32 {
        case getFeatures = 1
        case setFeatures = 2
        case setOwner = 3
        case setMemTable = 5
        case setVringNum = 8
        case setVringAddr = 9
        case setVringBase = 10
        case getVringBase = 11
        case setVringKick = 12
        case setVringCall = 13
        case setVringErr = 14
        case getProtocolFeatures = 15
        case setProtocolFeatures = 16
        case getQueueNum = 17
        case setVringEnable = 18
        case setBackendReqFD = 21
        case getConfig = 24
        case setConfig = 25
        case getInflightFD = 31
        case setInflightFD = 32
        case resetDevice = 34
    }

    /// What the back end sends on its own channel.
    enum BackendRequest {
        static let configChange: UInt32 = 2
    }

    enum Flag {
        static let version: UInt32 = 1
        static let versionMask: UInt32 = 3
        static let reply: UInt32 = 4
        static let needReply: UInt32 = 8
    }

    /// The feature bit that stands for the protocol features; the driver never
    /// sees it.
    static let hasProtocolFeatures: UInt64 = 1 << 30

    enum ProtocolFeature {
        static let multiQueue: UInt64 = 1 << 0
        static let replyAck: UInt64 = 1 << 3
        static let backendRequests: UInt64 = 1 << 5
        static let config: UInt64 = 1 << 9
        static let inflight: UInt64 = 1 << 12
        static let resetDevice: UInt64 = 1 << 13

        static let supported = multiQueue | replyAck | backendRequests | config | inflight | resetDevice
    }

    static let headerSize = 12
    /// No payload that this front end expects is larger.
    static let maxPayload = 4096
    /// Of a configuration space (VHOST_USER_MAX_CONFIG_SIZE).
    static let maxConfigSize = 256
    /// Regions of one SET_MEM_TABLE (VHOST_MEMORY_BASELINE_NREGIONS).
    static let maxRegions = 8
    /// Instead of a descriptor: there is none.
    static let noDescriptor: UInt64 = 1 << 8
    static let setConfigByDriver: UInt32 = 0

    /// Nanoseconds that the back end has for one sequence of messages, before
    /// its connection is given up: the guest waits that long at most.
    static let timeLimit: Int64 = 3_000_000_000
}

/// A message's header.
struct VhostUserHeader {
    var request: UInt32
    var flags: UInt32
    var size: UInt32

    init(request: UInt32, flags: UInt32, size: UInt32) {
        self.request = request
        self.flags = flags
        self.size = size
    }

    /// - Returns: nil when there are fewer than 12 bytes.
    init?(_ bytes: ArraySlice<UInt8>) {
        var cursor = ByteCursor(bytes)
        guard let request = cursor.unsigned(UInt32.self), let flags = cursor.unsigned(UInt32.self),
            let size = cursor.unsigned(UInt32.self)
        else { return nil }
        self.init(request: request, flags: flags, size: size)
    }

    var bytes: [UInt8] { littleEndianBytes(request) + littleEndianBytes(flags) + littleEndianBytes(size) }
}
