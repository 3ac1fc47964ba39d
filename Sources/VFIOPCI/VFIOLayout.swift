import BatonRuntime

/// What of a device's configuration space the VMM serves by itself, found in
/// what the device said. Nothing of that is trusted.
struct VFIOLayout {
    struct Bar {
        let index: Int
        let space: PCIBar.Space
        let size: UInt64
        let isPrefetchable: Bool
    }

    struct Capability {
        let id: UInt8
        let offset: Int
        /// Up to the next capability or the end.
        let size: Int
    }

    /// An MSI-X structure's place.
    struct Place {
        let bar: Int
        let offset: UInt64
    }

    let identity: PCIIdentity
    private(set) var bars: [Bar] = []
    /// In the list's order, without MSI where there is no room for it.
    private(set) var capabilities: [Capability] = []
    private(set) var msi: (vectors: Int, offset: Int)?
    private(set) var msix: (vectors: Int, table: Place, pending: Place)?
    /// The bytes that the guest reads and writes in the device itself.
    private(set) var passed: [Bool]
    /// What the guest finds in bytes that are not the device's.
    private(set) var own: [(offset: Int, bytes: [UInt8])] = []
    /// Whether the function can be reset by itself (PCI Express 5.0, 6.6.2),
    /// and whether a change of its power state resets it.
    private(set) var hasFLR = false
    private(set) var hasPowerReset = false

    private static let msiSize = 24
    private static let msixSize = 12

    init(_ shape: VFIOShape) throws(VMMError) {
        let config = shape.config
        passed = [Bool](repeating: false, count: config.count)
        func word(_ at: Int) -> UInt16 { UInt16(config[at]) | UInt16(config[at + 1]) << 8 }
        func long(_ at: Int) -> UInt32 { UInt32(word(at)) | UInt32(word(at + 2)) << 16 }
        let headerType = config[PCIRegister.headerType] & 0x7f
        guard headerType == 0 else {
            throw VMMError("header type \(headerType) is not supported: a bridge cannot be passed through")
        }
        identity = PCIIdentity(
            vendor: word(PCIRegister.vendorID), device: word(PCIRegister.deviceID),
            classCode: word(PCIRegister.classCode + 1), programmingInterface: config[PCIRegister.classCode],
            revision: config[PCIRegister.revisionID], subsystemVendor: word(PCIRegister.subsystemVendorID),
            subsystem: word(PCIRegister.subsystemID),
            interruptPin: shape.interrupts[0] > 0 ? config[PCIRegister.interruptPin] : 0)

        var index = 0
        while index < VFIO.bars {
            defer { index += 1 }
            let region = shape.regions[index]
            let raw = long(PCIRegister.firstBar + 4 * index)
            let isIO = raw & 1 != 0
            let is64 = !isIO && raw & 6 == 4
            let number = index
            if is64 { index += 1 }
            guard region.size > 0 else { continue }
            let least: UInt64 = isIO ? 4 : 16
            let most: UInt64 = isIO ? PCIBar.mostIO : is64 ? 1 << 38 : 1 << 31
            // What is behind the end of a region that is no power of two answers nothing.
            let size = max(least, VFIOLayout.powerOfTwo(region.size) ?? UInt64.max)
            guard size <= most, !(is64 && number == 5) else {
                throw VMMError("BAR \(number) of \(region.size) bytes cannot be passed through")
            }
            bars.append(
                Bar(
                    index: number, space: isIO ? .io : is64 ? .memory64 : .memory32, size: size,
                    isPrefetchable: !isIO && raw & 8 != 0))
        }

        let found = VFIOLayout.capabilities(config, hasList: word(PCIRegister.status) & PCIStatus.capabilitiesList != 0)
        for index in 0x40..<VFIOShape.configSize { passed[index] = true }
        // The upper half of the status register: errors.
        passed[PCIRegister.status + 1] = true
        for capability in found {
            let end = capability.offset + capability.size
            passed[capability.offset] = false
            passed[capability.offset + 1] = false
            switch capability.id {
            case PCICapabilityID.msix:
                guard capability.size >= VFIOLayout.msixSize, shape.interrupts[2] > 0 else { continue }
                try readMSIX(at: capability.offset, word: word, long: long)
                for byte in capability.offset..<capability.offset + VFIOLayout.msixSize { passed[byte] = false }
            case PCICapabilityID.msi:
                guard capability.size >= 10, shape.interrupts[1] > 0 else { continue }
                let control = word(capability.offset + 2)
                let own = 10 + (control & 0x80 != 0 ? 4 : 0) + (control & 0x100 != 0 ? 10 : 0)
                for byte in capability.offset..<min(end, capability.offset + own) { passed[byte] = false }
                // Ours has all its fields, and may need another place.
                let room = capability.size >= VFIOLayout.msiSize && own + 1 >= VFIOLayout.msiSize
                guard let place = room ? capability.offset : VFIOLayout.gap(found, except: capability) else { continue }
                for byte in place..<place + VFIOLayout.msiSize { passed[byte] = false }
                msi = (1 << min(Int(control >> 1 & 7), 5), place)
            case PCICapabilityID.express:
                guard try addExpress(capability, config) else { continue }
            case PCICapabilityID.advancedFeatures where capability.size >= 6:
                hasFLR = hasFLR || config[capability.offset + 3] & 3 == 3
            case PCICapabilityID.powerManagement where capability.size >= 6:
                hasPowerReset = config[capability.offset + 4] & 8 == 0
            default: break
            }
            capabilities.append(capability)
        }
        if capabilities.contains(where: { $0.id == PCICapabilityID.express }),
            config.count == VFIOShape.extendedConfigSize
        {
            addExtended(config)
        } else {
            passed.removeLast(passed.count - VFIOShape.configSize)
        }
    }

    /// The smallest that is not below `size`; nil beyond 2^63.
    private static func powerOfTwo(_ size: UInt64) -> UInt64? {
        guard size > 1 else { return 1 }
        let bits = UInt64.bitWidth - (size - 1).leadingZeroBitCount
        return bits < UInt64.bitWidth ? 1 << UInt64(bits) : nil
    }

    private mutating func readMSIX(at offset: Int, word: (Int) -> UInt16, long: (Int) -> UInt32) throws(VMMError) {
        let vectors = Int(word(offset + 2) & 0x7ff) + 1
        func place(_ at: Int, size: UInt64, _ what: String) throws(VMMError) -> Place {
            let raw = long(at)
            let place = Place(bar: Int(raw & 7), offset: UInt64(raw & ~7))
            guard let bar = bars.first(where: { $0.index == place.bar }), bar.space != .io, place.offset <= bar.size,
                size <= bar.size - place.offset
            else {
                throw VMMError("the MSI-X \(what) is at \(Hex(place.offset)) of BAR \(place.bar), where nothing is")
            }
            return place
        }
        let table = try place(offset + 4, size: UInt64(vectors * 16), "table")
        let pending = try place(offset + 8, size: UInt64((vectors + 63) / 64 * 8), "pending bits")
        msix = (vectors, table, pending)
    }

    /// The list of capabilities, in its order; it ends where it makes no sense.
    private static func capabilities(_ config: [UInt8], hasList: Bool) -> [Capability] {
        guard hasList else { return [] }
        var offsets: [Int] = []
        var at = Int(config[PCIRegister.capabilities] & 0xfc)
        while at >= PCIRegister.headerEnd, at < VFIOShape.configSize, !offsets.contains(at) {
            offsets.append(at)
            at = Int(config[at + 1] & 0xfc)
        }
        let sorted = offsets.sorted()
        var seen: Set<UInt8> = []
        return offsets.compactMap { offset in
            let next = sorted.first { $0 > offset } ?? VFIOShape.configSize
            let id = config[offset]
            // Ours can have only one of each.
            if id == PCICapabilityID.msi || id == PCICapabilityID.msix {
                guard seen.insert(id).inserted else { return nil }
            }
            return Capability(id: id, offset: offset, size: next - offset)
        }
    }

    // MARK: PCI Express

    private mutating func serve<T: FixedWidthInteger & UnsignedInteger>(_ offset: Int, _ value: T) {
        let bytes = littleEndianBytes(value)
        for byte in offset..<offset + bytes.count { passed[byte] = false }
        own.append((offset, bytes))
    }

    /// The bus is a root complex: an endpoint there has no link, and is called
    /// integrated (PCI Express 5.0, 1.3.2.3).
    /// - Returns: false when the guest is not to see that it is PCI Express.
    /// - Throws: an error for what is no endpoint.
    private mutating func addExpress(_ capability: Capability, _ config: [UInt8]) throws(VMMError) -> Bool {
        let at = capability.offset
        guard capability.size >= 20 else { return false }
        hasFLR = hasFLR || config[at + 7] & 0x10 != 0
        let flags = UInt16(config[at + 2]) | UInt16(config[at + 3]) << 8
        let (version, type) = (flags & 15, flags >> 4 & 15)
        switch type {
        case 0: break
        case 1: return false
        case 9: return true
        default: throw VMMError("assignment of PCIe type \(Hex(UInt64(type))) devices is not currently supported")
        }
        serve(at + 2, flags & ~0xf0 | 9 << 4)
        for register in version >= 2 && capability.size >= 60 ? [0x0c, 0x10, 0x2c, 0x30] : [0x0c, 0x10] {
            serve(at + register, 0 as UInt32)
        }
        return true
    }

    /// The extended capabilities that can be shown, chained anew. What the
    /// others have is not there: a chain is the only way to it.
    private mutating func addExtended(_ config: [UInt8]) {
        let found = VFIOExtendedCapability.all(config)
        for index in PCIRegister.extendedStart..<config.count { passed[index] = true }
        var last = PCIRegister.extendedStart
        // Without the first there is an empty one in its place.
        var header: UInt32 = 0
        for capability in found {
            let resizable = capability.resizableBars(config)
            guard !capability.isHidden, capability.id != VFIOExtendedCapability.resizableBar || resizable != nil else {
                for offset in stride(from: capability.offset, to: capability.end, by: 4) {
                    serve(offset, 0 as UInt32)
                }
                continue
            }
            for (offset, value) in resizable ?? [] { serve(offset, value) }
            if capability.offset != last { serve(last, header | UInt32(capability.offset) << 20) }
            last = capability.offset
            header = capability.header
        }
        serve(last, header)
    }

    /// Room for the MSI capability behind what is known of the others: their
    /// sizes where the specification fixes them.
    private static func gap(_ all: [Capability], except own: Capability) -> Int? {
        var used = [Bool](repeating: false, count: VFIOShape.configSize)
        for capability in all where capability.offset != own.offset {
            let size = fixedSizes[capability.id].map { min($0, capability.size) } ?? capability.size
            for byte in capability.offset..<capability.offset + size { used[byte] = true }
        }
        return stride(from: PCIRegister.headerEnd, through: used.count - msiSize, by: 4)
            .first { !used[$0..<$0 + msiSize].contains(true) }
    }

    /// Power management, VPD, Express (version 2), MSI-X, advanced features.
    private static let fixedSizes: [UInt8: Int] = [0x01: 8, 0x03: 8, 0x10: 60, 0x11: 12, 0x13: 6]
}
