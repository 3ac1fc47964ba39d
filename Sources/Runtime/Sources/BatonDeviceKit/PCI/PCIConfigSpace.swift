import Glibc

/// The bytes of a function's configuration space, and what the guest may do to
/// each bit: write it, clear it by writing a one, or only read it.
///
/// Offsets are of the device's making and checked; what the guest gives is
/// checked by its owner (`PCIFunction`).
public struct PCIConfigSpace {
    public private(set) var bytes: [UInt8]
    private var writable: [UInt8]
    private var clearable: [UInt8]
    /// Bits that the device changes by itself, which a checkpoint may have otherwise.
    private var owned: [UInt8]
    /// What a reset gives back.
    private var powerOn: [UInt8]
    private var nextCapability = PCIRegister.headerEnd
    private var lastCapability = 0

    /// - Parameter size: 256, or 4096 with the extended space.
    public init(size: Int = 256) {
        precondition(size == 256 || size == 4096)
        bytes = Array(repeating: 0, count: size)
        writable = bytes
        clearable = bytes
        owned = bytes
        powerOn = bytes
    }

    public var size: Int { bytes.count }

    // MARK: The device's side

    /// A little-endian number at an offset within the space.
    @inline(__always)
    public func value<T: FixedWidthInteger & UnsignedInteger>(_ offset: Int, as type: T.Type = T.self) -> T {
        var value: T = 0
        for index in 0..<MemoryLayout<T>.size {
            value |= T(truncatingIfNeeded: bytes[offset + index]) << T(8 * index)
        }
        return value
    }

    /// Sets a number, now and for every reset.
    @_specialize(where T == UInt8) @_specialize(where T == UInt16) @_specialize(where T == UInt32)
    public mutating func set<T: FixedWidthInteger & UnsignedInteger>(_ offset: Int, _ value: T) {
        update(offset, value)
        for index in 0..<MemoryLayout<T>.size { powerOn[offset + index] = bytes[offset + index] }
    }

    /// Changes a number until the next reset, as a device does while it runs.
    @_specialize(where T == UInt8) @_specialize(where T == UInt16) @_specialize(where T == UInt32)
    public mutating func update<T: FixedWidthInteger & UnsignedInteger>(_ offset: Int, _ value: T) {
        for index in 0..<MemoryLayout<T>.size {
            bytes[offset + index] = UInt8(truncatingIfNeeded: value >> T(8 * index))
        }
    }

    /// Says which bits the guest may write.
    @_specialize(where T == UInt8) @_specialize(where T == UInt16) @_specialize(where T == UInt32)
    public mutating func setWritable<T: FixedWidthInteger & UnsignedInteger>(_ offset: Int, _ mask: T) {
        PCIConfigSpace.put(&writable, offset, mask)
    }

    /// Lets the guest write more bits.
    mutating func addWritable(_ offset: Int, _ mask: UInt16) {
        writable[offset] |= UInt8(truncatingIfNeeded: mask)
        writable[offset + 1] |= UInt8(truncatingIfNeeded: mask >> 8)
    }

    /// Says which bits the guest clears by writing ones.
    @_specialize(where T == UInt8) @_specialize(where T == UInt16) @_specialize(where T == UInt32)
    public mutating func setClearable<T: FixedWidthInteger & UnsignedInteger>(_ offset: Int, _ mask: T) {
        PCIConfigSpace.put(&clearable, offset, mask)
    }

    /// Says which read-only bits the device changes while it runs, so that
    /// they may differ from their power-on values in a checkpoint.
    @_specialize(where T == UInt8) @_specialize(where T == UInt16) @_specialize(where T == UInt32)
    public mutating func setOwned<T: FixedWidthInteger & UnsignedInteger>(_ offset: Int, _ mask: T) {
        PCIConfigSpace.put(&owned, offset, mask)
    }

    private static func put<T: FixedWidthInteger & UnsignedInteger>(_ array: inout [UInt8], _ offset: Int, _ value: T) {
        for index in 0..<MemoryLayout<T>.size {
            array[offset + index] = UInt8(truncatingIfNeeded: value >> T(8 * index))
        }
    }

    /// Adds a capability to the list.
    /// - Parameters:
    ///   - size: bytes, the two of the header included.
    ///   - offset: a multiple of 4 from 0x40 on where it is to be; by default
    ///     behind the last.
    /// - Returns: its offset.
    @discardableResult
    public mutating func addCapability(_ id: UInt8, size: Int, at offset: Int? = nil) -> Int {
        let offset = offset ?? nextCapability
        precondition(size >= 2 && offset >= PCIRegister.headerEnd && offset % 4 == 0 && offset + size <= 256)
        set(offset, id)
        set(offset + 1, 0 as UInt8)
        set(lastCapability == 0 ? PCIRegister.capabilities : lastCapability + 1, UInt8(truncatingIfNeeded: offset))
        set(PCIRegister.status, value(PCIRegister.status, as: UInt16.self) | PCIStatus.capabilitiesList)
        lastCapability = offset
        nextCapability = max(nextCapability, (offset + size + 3) & ~3)
        return offset
    }

    /// The offset of the first capability of that id, or nil.
    public func capability(_ id: UInt8) -> Int? {
        guard value(PCIRegister.status, as: UInt16.self) & PCIStatus.capabilitiesList != 0 else { return nil }
        var offset = Int(bytes[PCIRegister.capabilities] & 0xfc)
        // A list of the device's own making, but it may be a real one's.
        for _ in 0..<48 where offset >= PCIRegister.headerEnd {
            if bytes[offset] == id { return offset }
            offset = Int(bytes[offset + 1] & 0xfc)
        }
        return nil
    }

    // MARK: The guest's side

    /// Reads 1, 2 or 4 bytes; beyond the end there are ones.
    public func read(_ offset: Int, width: Int) -> UInt32 {
        var value: UInt32 = 0
        for index in 0..<width {
            let byte = bytes.indices.contains(offset + index) ? bytes[offset + index] : 0xff
            value |= UInt32(byte) << UInt32(8 * index)
        }
        return value
    }

    /// Writes 1, 2 or 4 bytes: what is writable or clearable changes.
    public mutating func write(_ offset: Int, width: Int, _ value: UInt32) {
        for index in 0..<width where bytes.indices.contains(offset + index) {
            let byte = UInt8(truncatingIfNeeded: value >> UInt32(8 * index))
            let at = offset + index
            bytes[at] = (bytes[at] & ~writable[at] | byte & writable[at]) & ~(byte & clearable[at])
        }
    }

    public mutating func reset() { bytes = powerOn }

    // MARK: Checkpoint

    /// Checks the bytes of a checkpoint: what neither the guest nor the device
    /// can have changed is as it is here.
    /// - Returns: the first offset that is not, nil when all is well.
    func firstMismatch(_ other: [UInt8]) -> Int? {
        guard other.count == bytes.count else { return 0 }
        func mismatches(_ index: Int) -> Bool {
            (other[index] ^ powerOn[index]) & ~(writable[index] | clearable[index] | owned[index]) != 0
        }
        // Most of it is as it was at power-on, and is compared at once: the guest waits.
        let step = 64
        return other.withUnsafeBytes { other in
            powerOn.withUnsafeBytes { powerOn in
                guard let other = other.baseAddress, let powerOn = powerOn.baseAddress else { return nil }
                for start in stride(from: 0, to: bytes.count, by: step) {
                    let end = min(start + step, bytes.count)
                    if memcmp(other + start, powerOn + start, end - start) == 0 { continue }
                    if let index = (start..<end).first(where: mismatches) { return index }
                }
                return nil
            }
        }
    }

    mutating func restore(_ other: [UInt8]) { bytes = other }
}
