import BatonRuntime

/// Feature bits of virtio-net (virtio 1.3, 5.1.3), and the properties of
/// `-device` that they are, named as in QEMU.
public enum VirtioNetFeature {
    static let checksum: UInt64 = 1 << 0
    static let guestChecksum: UInt64 = 1 << 1
    static let controlGuestOffloads: UInt64 = 1 << 2
    static let mac: UInt64 = 1 << 5
    static let guestTCP4: UInt64 = 1 << 7
    static let guestTCP6: UInt64 = 1 << 8
    static let guestECN: UInt64 = 1 << 9
    static let hostTCP4: UInt64 = 1 << 11
    static let hostTCP6: UInt64 = 1 << 12
    static let hostECN: UInt64 = 1 << 13
    static let mergeableBuffers: UInt64 = 1 << 15
    static let status: UInt64 = 1 << 16
    static let controlQueue: UInt64 = 1 << 17
    static let controlReceive: UInt64 = 1 << 18
    static let controlReceiveExtra: UInt64 = 1 << 20
    static let guestAnnounce: UInt64 = 1 << 21
    static let multipleQueues: UInt64 = 1 << 22
    static let controlAddress: UInt64 = 1 << 23

    /// What the driver may leave to the host, and the host to the driver:
    /// only where frames have headers.
    private static let hostOffloads = checksum | hostTCP4 | hostTCP6 | hostECN
    static let guestOffloads = guestChecksum | guestTCP4 | guestTCP6 | guestECN
    private static let needHeaders = hostOffloads | guestOffloads | controlGuestOffloads
    private static let needControlQueue =
        controlGuestOffloads | controlReceive | controlReceiveExtra | controlAddress | multipleQueues
        | guestAnnounce

    /// The features that can be switched, all of them on unless said otherwise
    /// but `mq`.
    private static let switches: [(name: String, bit: UInt64)] = [
        ("csum", checksum), ("guest_csum", guestChecksum), ("guest_tso4", guestTCP4), ("guest_tso6", guestTCP6),
        ("guest_ecn", guestECN), ("host_tso4", hostTCP4), ("host_tso6", hostTCP6), ("host_ecn", hostECN),
        ("mrg_rxbuf", mergeableBuffers), ("ctrl_vq", controlQueue), ("ctrl_rx", controlReceive),
        ("ctrl_rx_extra", controlReceiveExtra), ("ctrl_mac_addr", controlAddress),
        ("ctrl_guest_offloads", controlGuestOffloads), ("guest_announce", guestAnnounce), ("mq", multipleQueues),
    ]

    static let properties = switches.map { name, bit in
        DeviceProperty(name, "bool", "on/off (default: \(standard & bit != 0 ? "on" : "off"))")
    }

    /// What is offered when no property is given.
    public static let standard = switches.reduce(mac | status) { $0 | $1.bit } & ~multipleQueues

    /// What the properties of a device ask for.
    static func requested(_ options: DeviceOptions) throws(VMMError) -> UInt64 {
        var features = standard
        for key in options.options.untakenKeys {
            guard let (name, bit) = switches.first(where: { $0.name == key }) else { continue }
            if try options.options.bool(name) == true { features |= bit } else { features &= ~bit }
        }
        if features & multipleQueues != 0, features & controlQueue == 0 {
            throw VMMError("Property '\(options.model).mq' can't be on without ctrl_vq")
        }
        return features
    }

    /// What of the requested features there is with a back end.
    static func offered(_ requested: UInt64, by backend: NetBackend) -> UInt64 {
        var features = requested
        if !backend.carriesHeaders { features &= ~needHeaders }
        if features & controlQueue == 0 { features &= ~needControlQueue }
        return features
    }

    /// What the host may leave undone, by the bits that allow it. Without
    /// checksums there is nothing else, nor ECN without segmentation.
    static func offloads(_ features: UInt64) -> NetOffloads {
        guard features & guestChecksum != 0 else { return [] }
        var result: NetOffloads = .checksum
        if features & guestTCP4 != 0 { result.insert(.tcp4) }
        if features & guestTCP6 != 0 { result.insert(.tcp6) }
        if features & guestECN != 0, result != .checksum { result.insert(.ecn) }
        return result
    }

    /// Whether a frame's header asks for nothing beyond `offloads`.
    static func allows(_ offloads: NetOffloads, _ header: FrameHeader) -> Bool {
        if header.flags & FrameHeader.needsChecksum != 0, !offloads.contains(.checksum) { return false }
        if header.segmentation & FrameHeader.ecn != 0, !offloads.contains(.ecn) { return false }
        switch header.segmentation & ~FrameHeader.ecn {
        case 0: return header.segmentation == 0
        case FrameHeader.tcp4: return offloads.contains(.tcp4)
        case FrameHeader.tcp6: return offloads.contains(.tcp6)
        default: return false
        }
    }

    /// What the driver may leave undone.
    static func hostOffloads(_ features: UInt64) -> NetOffloads {
        var result: NetOffloads = []
        if features & checksum != 0 { result.insert(.checksum) }
        if features & hostTCP4 != 0 { result.insert(.tcp4) }
        if features & hostTCP6 != 0 { result.insert(.tcp6) }
        if features & hostECN != 0 { result.insert(.ecn) }
        return result
    }
}
