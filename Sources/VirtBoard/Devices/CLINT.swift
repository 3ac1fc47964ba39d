import BatonRuntime

/// What the CLINT drives: the timers and software interrupts of the harts.
public protocol CLINTHarts: AnyObject {
    var clintHartCount: Int { get }
    /// Ticks of the board's 10 MHz clock: `mtime`.
    var clintTime: UInt64 { get }
    func clintTimeCompare(hart: Int) -> UInt64
    func setClintTimeCompare(hart: Int, _ value: UInt64)
    func setClintSoftwareInterrupt(hart: Int, _ level: Bool)
}

/// SiFive's core-local interruptor: `msip` and `mtimecmp` of each hart, and
/// `mtime`. The time compare values belong to the harts, and so does their
/// state.
public final class CLINT: MMIODevice, Device {
    public let stateName = "clint"
    /// Bytes that the device tree gives it.
    public static let size: UInt64 = 0x10000
    /// Bytes that it answers.
    public static let registersSize: UInt64 = 0xc000

    private static let compareBase: UInt64 = 0x4000
    private static let timeBase: UInt64 = 0xbff8

    private let harts: any CLINTHarts
    private var softwareInterrupts: [Bool]

    /// - Parameter harts: at most 4095, the room that the registers have.
    public init(harts: any CLINTHarts) {
        self.harts = harts
        softwareInterrupts = Array(repeating: false, count: min(harts.clintHartCount, 4095))
    }

    private enum Target {
        case softwareInterrupt(Int), compare(Int), time, none
    }

    private func target(_ offset: UInt64) -> Target {
        let hart: Int
        switch offset {
        case ..<CLINT.compareBase:
            hart = Int(offset / 4)
            return hart < softwareInterrupts.count ? .softwareInterrupt(hart) : .none
        case ..<CLINT.timeBase:
            hart = Int((offset - CLINT.compareBase) / 8)
            return hart < softwareInterrupts.count ? .compare(hart) : .none
        case ..<(CLINT.timeBase + 8): return .time
        default: return .none
        }
    }

    /// `msip` takes words only, the rest also doublewords.
    public func accepts(offset: UInt64, width: Int) -> Bool {
        (width == 4 || width == 8 && offset >= CLINT.compareBase) && offset % UInt64(width) == 0
    }

    public func mmioRead(offset: UInt64, width: Int) -> UInt64 {
        let shift = width == 4 ? offset % 8 * 8 : 0
        let mask: UInt64 = width == 4 ? 0xffff_ffff : .max
        switch target(offset) {
        case .softwareInterrupt(let hart): return softwareInterrupts[hart] ? 1 : 0
        case .compare(let hart): return harts.clintTimeCompare(hart: hart) >> shift & mask
        case .time: return harts.clintTime >> shift & mask
        case .none:
            Log.guestError("clint: read of \(width) bytes at \(Hex(offset))")
            return 0
        }
    }

    public func mmioWrite(offset: UInt64, width: Int, value: UInt64) {
        switch target(offset) {
        case .softwareInterrupt(let hart):
            softwareInterrupts[hart] = value & 1 != 0
            harts.setClintSoftwareInterrupt(hart: hart, value & 1 != 0)
        case .compare(let hart):
            var compare = value
            if width == 4 {
                let shift = offset % 8 * 8
                let old = harts.clintTimeCompare(hart: hart) & ~(0xffff_ffff << shift)
                compare = old | (value & 0xffff_ffff) << shift
            }
            harts.setClintTimeCompare(hart: hart, compare)
        case .time: Log.unimplemented("clint: write of mtime")
        case .none: Log.guestError("clint: write of \(width) bytes at \(Hex(offset))")
        }
    }

    public func reset() {
        for hart in softwareInterrupts.indices {
            softwareInterrupts[hart] = false
            harts.setClintSoftwareInterrupt(hart: hart, false)
        }
    }

    public func save(to writer: inout StateWriter) {
        writer.put("msip", softwareInterrupts.map { $0 ? 1 : 0 })
    }

    public func loader(of reader: StateReader) throws(VMMError) -> () -> Void {
        let bits = try reader.array("msip", count: softwareInterrupts.count...softwareInterrupts.count)
        guard bits.allSatisfy({ $0 <= 1 }) else {
            throw VMMError("field 'msip' of section '\(reader.section)' is out of range")
        }
        try reader.finish()
        return { [self] in
            for (hart, bit) in bits.enumerated() {
                softwareInterrupts[hart] = bit == 1
                harts.setClintSoftwareInterrupt(hart: hart, bit == 1)
            }
        }
    }
}
