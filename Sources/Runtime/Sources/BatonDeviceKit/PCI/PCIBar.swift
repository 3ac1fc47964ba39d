import BatonMachine

/// A base address register: a range of addresses that the guest places, and
/// what answers there.
public final class PCIBar {
    public enum Space {
        case io
        case memory32
        case memory64
    }

    /// What a part of the range is.
    public enum Content {
        /// Loads and stores are given to a device, whose offset 0 is at the part's start.
        case registers(any MMIODevice)
        /// Host memory that the guest reaches without the VMM: a device's BAR
        /// or shared memory. The function keeps the mapping while it exists.
        case memory(UnsafeMutableRawPointer, readOnly: Bool)
    }

    struct Part {
        let start: UInt64
        let size: UInt64
        let content: Content
        var end: UInt64 { start + size }
    }

    /// The index of the expansion ROM's BAR.
    public static let rom = 6

    /// The largest I/O BAR: half of the bridge's window. PCI has no more than
    /// 256 bytes for one, which not all devices keep to.
    public static let mostIO: UInt64 = 0x8000

    /// 0 to 5, or `rom`.
    public let index: Int
    public let space: Space
    public let isPrefetchable: Bool
    /// Bytes; a power of two, 16 at least (4 for I/O).
    public let size: UInt64
    /// Where the guest reaches it now: a guest-physical address (for I/O, one
    /// of the host bridge's I/O window); nil when it does not. Set by the host
    /// bridge.
    public internal(set) var address: UInt64?
    /// Later parts hide earlier ones.
    private(set) var parts: [Part] = []
    /// What is mapped as memory now, in guest-physical addresses.
    var mappedMemory: [UInt64] = []

    public init(index: Int, space: Space, size: UInt64, isPrefetchable: Bool = false) {
        let least: UInt64 = space == .io ? 4 : 16
        precondition((0...5).contains(index) && !(space == .memory64 && index == 5) || index == PCIBar.rom)
        precondition(index != PCIBar.rom || (space == .memory32 && size >= 2048 && !isPrefetchable))
        precondition(size >= least && size & (size - 1) == 0 && (space == .memory64 || size <= 1 << 31))
        precondition(space != .io || size <= PCIBar.mostIO)
        self.index = index
        self.space = space
        self.size = size
        self.isPrefetchable = isPrefetchable
    }

    /// Puts registers at an offset of the BAR; they hide what is below.
    public func add(registers: any MMIODevice, at offset: UInt64 = 0, size: UInt64) {
        precondition(size > 0 && offset <= self.size && size <= self.size - offset)
        parts.append(Part(start: offset, size: size, content: .registers(registers)))
    }

    /// Puts host memory at an offset of the BAR, both multiples of 4096; it
    /// hides what is below. Before the function is plugged, or while
    /// `address` is nil.
    /// - Parameter memory: stays mapped as long as the function exists.
    public func add(memory: UnsafeMutableRawPointer, at offset: UInt64 = 0, size: UInt64, readOnly: Bool = false) {
        precondition(space != .io && offset % 4096 == 0 && size > 0 && size % 4096 == 0)
        precondition(offset <= self.size && size <= self.size - offset && address == nil)
        parts.append(Part(start: offset, size: size, content: .memory(memory, readOnly: readOnly)))
    }

    /// The config space register, and the low bits that say what it is.
    var isROM: Bool { index == PCIBar.rom }
    var register: Int { isROM ? PCIRegister.expansionROM : PCIRegister.firstBar + 4 * index }
    var flags: UInt32 {
        switch space {
        case .io: 1
        case .memory32: isPrefetchable ? 8 : 0
        case .memory64: isPrefetchable ? 12 : 4
        }
    }

    /// The pages that are memory and not hidden by another part.
    var memoryPages: [(offset: UInt64, size: UInt64, host: UnsafeMutableRawPointer, readOnly: Bool)] {
        var result: [(offset: UInt64, size: UInt64, host: UnsafeMutableRawPointer, readOnly: Bool)] = []
        for (index, part) in parts.enumerated() {
            guard case .memory(let host, let readOnly) = part.content else { continue }
            var visible = [(part.start, part.end)]
            for upper in parts[(index + 1)...] {
                let hidden = (upper.start & ~4095, (upper.end + 4095) & ~4095)
                visible = visible.flatMap { range in
                    [(range.0, min(range.1, hidden.0)), (max(range.0, hidden.1), range.1)].filter { $0.0 < $0.1 }
                }
            }
            for (start, end) in visible {
                result.append((start, end - start, host + Int(start - part.start), readOnly))
            }
        }
        return result
    }

    // MARK: Access by the guest

    /// The topmost part that holds the whole access.
    private func part(_ offset: UInt64, _ width: Int) -> Part? {
        let end = offset &+ UInt64(width)
        guard end > offset else { return nil }
        guard let index = parts.lastIndex(where: { $0.start < end && offset < $0.end }) else { return nil }
        let part = parts[index]
        return part.start <= offset && end <= part.end ? part : nil
    }

    /// Whether an access is no fault.
    func accepts(_ offset: UInt64, width: Int) -> Bool {
        guard let part = part(offset, width), case .registers(let device) = part.content else { return true }
        return device.accepts(offset: offset - part.start, width: width)
    }

    /// Reads at an offset of the BAR; ones where there is nothing.
    public func read(_ offset: UInt64, width: Int) -> UInt64 {
        guard let part = part(offset, width) else { return UInt64.max >> UInt64(64 - 8 * width) }
        switch part.content {
        case .registers(let device): return device.mmioRead(offset: offset - part.start, width: width)
        case .memory(let host, _):
            // In one access, as the memory may be a device's registers.
            let source = host + Int(truncatingIfNeeded: offset - part.start)
            switch width {
            case 1: return UInt64(source.load(as: UInt8.self))
            case 2: return UInt64(source.loadUnaligned(as: UInt16.self))
            case 4: return UInt64(source.loadUnaligned(as: UInt32.self))
            default: return source.loadUnaligned(as: UInt64.self)
            }
        }
    }

    /// Writes at an offset of the BAR; what nothing answers is dropped.
    public func write(_ offset: UInt64, width: Int, _ value: UInt64) {
        guard let part = part(offset, width) else { return }
        switch part.content {
        case .registers(let device): device.mmioWrite(offset: offset - part.start, width: width, value: value)
        case .memory(let host, let readOnly):
            guard !readOnly else { return }
            let target = host + Int(truncatingIfNeeded: offset - part.start)
            switch width {
            case 1: target.storeBytes(of: UInt8(truncatingIfNeeded: value), as: UInt8.self)
            case 2: target.storeBytes(of: UInt16(truncatingIfNeeded: value), as: UInt16.self)
            case 4: target.storeBytes(of: UInt32(truncatingIfNeeded: value), as: UInt32.self)
            default: target.storeBytes(of: value, as: UInt64.self)
            }
        }
    }
}
