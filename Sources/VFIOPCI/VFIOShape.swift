import BatonRuntime

/// A region of the device: a BAR, or its configuration space.
public struct VFIORegion {
    /// The number that the device has it under.
    public let index: Int
    public let flags: UInt32
    /// Bytes; 0 where there is none.
    public let size: UInt64
    /// Where it is in the file that it is mapped from.
    public let offset: UInt64
    /// Which parts of it can be mapped; whole pages.
    public let areas: [(start: UInt64, size: UInt64)]

    public func allows(_ flag: UInt32) -> Bool { flags & flag != 0 }
}

/// What a device says of itself when it is opened. It does not change, so it is
/// handed over and asked for once.
public struct VFIOShape {
    public let resets: Bool
    /// The BARs.
    public let regions: [VFIORegion]
    public let configRegion: VFIORegion
    /// The expansion ROM; empty where there is none.
    public let romRegion: VFIORegion
    /// How many INTx, MSI and MSI-X interrupts there are.
    public let interrupts: [UInt32]
    /// What the host can tell of the device.
    public let notices: [VFIONotices.Kind]
    /// The configuration space when the device was opened: 256 bytes, or 4096
    /// with the extended part.
    public let config: [UInt8]

    static let configSize = 256
    static let extendedConfigSize = 4096
    /// A device's answer that is longer is not looked at.
    private static let longestAnswer = 65536

    // MARK: From the device

    /// Asks the device, and believes nothing that cannot be.
    public init(of device: VFIOTransport) throws(VMMError) {
        var info = VFIOArgument(size: 24)
        let result = device.ask(.deviceInfo, &info)
        guard result == 0 else { throw .system("error getting device info", errno: result) }
        let flags: UInt32 = info.value(4)
        let regionCount: UInt32 = info.value(8)
        let irqCount: UInt32 = info.value(12)
        guard flags & VFIO.DeviceFlag.pci != 0 else { throw VMMError("this isn't a PCI device") }
        guard regionCount >= VFIO.leastRegions else { throw VMMError("unexpected number of io regions \(regionCount)") }
        guard irqCount >= VFIO.leastIRQs else { throw VMMError("unexpected number of irqs \(irqCount)") }
        resets = flags & VFIO.DeviceFlag.reset != 0
        var regions: [VFIORegion] = []
        for index in 0..<VFIO.bars { regions.append(try VFIOShape.region(device, index)) }
        self.regions = regions
        // A device may do without one.
        romRegion =
            (try? VFIOShape.region(device, VFIO.romRegion))
            ?? VFIORegion(index: VFIO.romRegion, flags: 0, size: 0, offset: 0, areas: [])
        configRegion = try VFIOShape.region(device, VFIO.configRegion)
        interrupts = (0..<VFIO.leastIRQs).map { VFIOShape.interruptCount(device, $0) }
        notices = VFIONotices.Kind.allCases.filter {
            $0.rawValue < irqCount && VFIOShape.interruptCount(device, $0.rawValue) == 1
        }
        guard configRegion.size >= UInt64(VFIOShape.configSize), Int64(exactly: configRegion.offset) != nil else {
            throw VMMError("the configuration space has \(configRegion.size) bytes")
        }
        let isExtended = configRegion.size >= UInt64(VFIOShape.extendedConfigSize)
        var bytes = [UInt8](repeating: 0, count: isExtended ? VFIOShape.extendedConfigSize : VFIOShape.configSize)
        let space = configRegion
        let failure = bytes.withUnsafeMutableBytes { device.read(space, at: 0, into: $0) }
        guard failure == 0 else { throw .system("failed to read device config space", errno: failure) }
        config = bytes
    }

    /// - Returns: 0 for an index that the device lacks.
    private static func interruptCount(_ device: VFIOTransport, _ index: UInt32) -> UInt32 {
        var irq = VFIOArgument(size: 16)
        irq.set(8, index)
        return device.ask(.irqInfo, &irq) == 0 ? irq.value(12) : 0
    }

    private static func region(_ device: VFIOTransport, _ index: Int) throws(VMMError) -> VFIORegion {
        func ask(_ size: Int) throws(VMMError) -> VFIOArgument {
            var argument = VFIOArgument(size: size)
            argument.set(8, UInt32(truncatingIfNeeded: index))
            let result = device.ask(.regionInfo, &argument)
            guard result == 0 else { throw .system("failed to get region \(index) info", errno: result) }
            return argument
        }
        var answer = try ask(32)
        let needed = Int(answer.value(0, as: UInt32.self))
        if needed > 32 && needed <= longestAnswer { answer = try ask(needed) }
        let flags: UInt32 = answer.value(4)
        let size: UInt64 = answer.value(16)
        let offset: UInt64 = answer.value(24)
        let end = offset &+ size
        guard size == 0 || (Int64(exactly: offset) != nil && Int64(exactly: end) != nil && end >= size) else {
            throw VMMError("region \(index) of \(size) bytes at \(Hex(offset)) is not in the device's file")
        }
        return VFIORegion(
            index: index, flags: flags, size: size, offset: offset, areas: areas(answer, flags: flags, size: size))
    }

    /// The pages that can be mapped, as `VFIO_REGION_INFO_CAP_SPARSE_MMAP` says.
    private static func areas(_ answer: VFIOArgument, flags: UInt32, size: UInt64) -> [(start: UInt64, size: UInt64)] {
        let page = UInt64(Mapping.pageSize)
        guard flags & VFIO.RegionFlag.mmap != 0, size >= page, size % page == 0 else { return [] }
        var at = flags & VFIO.RegionFlag.capabilities != 0 ? Int(answer.value(12, as: UInt32.self)) : 0
        var steps = 0
        while at >= 32, at < answer.bytes.count, steps < 16 {
            if answer.value(at, as: UInt16.self) == VFIO.RegionCapability.sparseMmap {
                var found: [(start: UInt64, size: UInt64)] = []
                for index in 0..<min(Int(answer.value(at + 8, as: UInt32.self)), 1024) {
                    let start: UInt64 = answer.value(at + 16 + 16 * index)
                    let length: UInt64 = answer.value(at + 24 + 16 * index)
                    guard length > 0, start % page == 0, length % page == 0, start <= size, length <= size - start,
                        !found.contains(where: { $0.start < start + length && start < $0.start + $0.size })
                    else { continue }
                    found.append((start, length))
                }
                return found
            }
            at = Int(answer.value(at + 4, as: UInt32.self))
            steps += 1
        }
        return [(0, size)]
    }

    // MARK: Over an update

    public func put(into state: inout StateWriter) {
        state.put("resets", resets)
        state.put("config", bytes: config)
        state.put("rom", [UInt64(romRegion.flags), romRegion.size, romRegion.offset])
        state.put("interrupts", interrupts.map(UInt64.init))
        state.put("notices", notices.map { UInt64($0.rawValue) }, optional: true)
        for (index, region) in (regions + [configRegion]).enumerated() {
            state.put("region\(index)", [UInt64(region.flags), region.size, region.offset])
            state.put("areas\(index)", region.areas.flatMap { [$0.start, $0.size] })
        }
    }

    public init(_ state: StateReader) throws(VMMError) {
        resets = try state.bool("resets")
        config = try state.bytes("config", count: VFIOShape.configSize...VFIOShape.extendedConfigSize)
        guard [VFIOShape.configSize, VFIOShape.extendedConfigSize].contains(config.count) else {
            throw VMMError("part '\(state.section)' has \(config.count) bytes of configuration space")
        }
        // A VMM of before knew of none.
        let rom = state.has("rom") ? try state.array("rom", count: 3...3) : [0, 0, 0]
        romRegion = try VFIOShape.region(VFIO.romRegion, rom, areas: [], of: state)
        interrupts = try state.array("interrupts", count: 3...3).map { UInt32(truncatingIfNeeded: $0) }
        // A VMM of before knew of none.
        notices =
            state.has("notices")
            ? try state.array("notices", count: 0...2).compactMap { .init(rawValue: UInt32(truncatingIfNeeded: $0)) }
            : []
        var regions: [VFIORegion] = []
        for index in 0...VFIO.bars {
            let numbers = try state.array("region\(index)", count: 3...3)
            let areas = try state.array("areas\(index)", count: 0...2048)
            let number = index == VFIO.bars ? VFIO.configRegion : index
            regions.append(try VFIOShape.region(number, numbers, areas: areas, of: state))
        }
        configRegion = regions[VFIO.bars]
        self.regions = Array(regions[..<VFIO.bars])
    }

    /// - Parameters:
    ///   - numbers: flags, size and offset.
    ///   - areas: start and size of each.
    private static func region(
        _ index: Int, _ numbers: [UInt64], areas: [UInt64], of state: StateReader
    ) throws(VMMError) -> VFIORegion {
        let (flags, size, offset) = (numbers[0], numbers[1], numbers[2])
        guard areas.count % 2 == 0, flags <= UInt64(UInt32.max), size == 0 || Int64(exactly: offset) != nil,
            size == 0 || (Int64(exactly: offset &+ size) != nil && offset &+ size >= size)
        else { throw VMMError("part '\(state.section)' has a region \(index) that cannot be") }
        var pairs: [(start: UInt64, size: UInt64)] = []
        for place in stride(from: 0, to: areas.count, by: 2) {
            let (start, length) = (areas[place], areas[place + 1])
            guard start % 4096 == 0, length > 0, length % 4096 == 0, start <= size, length <= size - start else {
                throw VMMError("part '\(state.section)' has an area of region \(index) that cannot be")
            }
            pairs.append((start, length))
        }
        return VFIORegion(
            index: index, flags: UInt32(truncatingIfNeeded: flags), size: size, offset: offset, areas: pairs)
    }
}
