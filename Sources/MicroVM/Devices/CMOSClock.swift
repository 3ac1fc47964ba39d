import BatonRuntime

/// Indices of the MC146818's registers, and of the memory behind them that has a meaning on a PC.
enum CMOSIndex {
    static let second = 0x00
    static let secondAlarm = 0x01
    static let minute = 0x02
    static let minuteAlarm = 0x03
    static let hour = 0x04
    static let hourAlarm = 0x05
    static let weekday = 0x06
    static let day = 0x07
    static let month = 0x08
    static let year = 0x09
    static let a = 0x0a
    static let b = 0x0b
    static let c = 0x0c
    static let d = 0x0d
    static let shutdownStatus = 0x0f
    static let century = 0x32
    /// Where IBM's PS/2 has the century.
    static let centuryPS2 = 0x37
}

/// Bits of register B.
enum CMOSControl {
    /// The guest sets the time: it does not go on.
    static let set: UInt8 = 0x80
    static let squareWave: UInt8 = 0x08
    /// Numbers are binary, not decimal digits.
    static let binary: UInt8 = 0x04
    static let hours24: UInt8 = 0x02
}

/// What can interrupt: in register B as enabled, in register C as having happened.
struct CMOSInterrupts: OptionSet {
    let rawValue: UInt8
    static let periodic = CMOSInterrupts(rawValue: 0x40)
    static let alarm = CMOSInterrupts(rawValue: 0x20)
    static let updateEnded = CMOSInterrupts(rawValue: 0x10)
    static let all: CMOSInterrupts = [.periodic, .alarm, .updateEnded]
}

/// A PC's real-time clock and its CMOS memory: Motorola's MC146818 behind an index and a data port.
///
/// The time is the time of day plus an offset that the guest sets. Nothing happens each second: what the time's
/// passing has set in register C is found when somebody looks, and there is a timer only for an interrupt that is
/// enabled and has not happened. The next one of its kind comes after the guest has read register C, so that no
/// period, however short, causes more interrupts than the guest answers.
public final class CMOSClock: MMIODevice, Device {
    public let stateName = "rtc"
    public static let firstPort: UInt64 = 0x70
    public static let portCount: UInt64 = 2
    /// The line of a PC's clock.
    public static let interrupt = 8
    /// Bytes behind the data port.
    static let memorySize = 128

    let loop: EventLoop
    private let line: InterruptLine
    /// Nanoseconds since 1970.
    let wallClock: () -> Int64
    var timer: EventLoop.Timer?
    private(set) var isRunning = false

    /// What the data port reads, except for register C and the bit of register A that says that an update is in
    /// progress. The time is written here when the guest reads it, and stays here while the clock stands.
    var memory = [UInt8](repeating: 0, count: CMOSClock.memorySize)
    /// What the next access to the data port is for.
    var index: UInt8 = 0
    var happened: CMOSInterrupts = []
    /// The guest's time ahead of the wall clock: whole seconds, and nanoseconds below a second.
    var offsetSeconds: Int64 = 0
    var offsetNanoseconds: Int64 = 0
    /// The second, and the count of periods, up to which `happened` is true.
    var settledSecond: Int64 = 0
    var settledPeriod: UInt64 = 0

    /// - Parameters:
    ///   - line: to input 8 of the interrupt controllers; edge-triggered, active high.
    ///   - memoryBelow4G: bytes of RAM from address 0 on, for firmware.
    ///   - memoryAbove4G: bytes of RAM from 4 GiB on.
    ///   - wallClock: nanoseconds since 1970, as of `GuestClock.wallClock`.
    public init(
        loop: EventLoop, line: InterruptLine, memoryBelow4G: UInt64, memoryAbove4G: UInt64,
        wallClock: @escaping () -> Int64
    ) {
        self.loop = loop
        self.line = line
        self.wallClock = wallClock
        // A time base of 32,768 Hz, and a period of 1/1024 s.
        memory[CMOSIndex.a] = 0x26
        memory[CMOSIndex.b] = CMOSControl.hours24
        // The battery is good.
        memory[CMOSIndex.d] = 0x80
        setMemorySizes(below4G: memoryBelow4G, above4G: memoryAbove4G)
        settleAnew()
    }

    /// As in QEMU's `microvm_set_rtc` (`hw/i386/microvm.c`), which SeaBIOS reads.
    private func setMemorySizes(below4G: UInt64, above4G: UInt64) {
        func put(_ value: UInt64, at indices: [Int]) {
            for (place, index) in indices.enumerated() {
                memory[index] = UInt8(truncatingIfNeeded: value >> (8 * place))
            }
        }
        func beyond(_ start: UInt64, in unit: UInt64) -> UInt64 {
            min(below4G > start ? (below4G - start) / unit : 0, 0xffff)
        }
        // KiB up to 640, then above 1 MiB, then units of 64 KiB above 16 MiB and above 4 GiB.
        put(min(below4G >> 10, 640), at: [0x15, 0x16])
        put(beyond(1 << 20, in: 1 << 10), at: [0x17, 0x18])
        put(beyond(1 << 20, in: 1 << 10), at: [0x30, 0x31])
        put(beyond(16 << 20, in: 64 << 10), at: [0x34, 0x35])
        put(above4G >> 16, at: [0x5b, 0x5c, 0x5d])
    }

    // MARK: Ports

    public func mmioRead(offset: UInt64, width: Int) -> UInt64 {
        var value: UInt64 = 0
        for place in 0..<min(width, 8) {
            // The index cannot be read.
            let byte = (offset &+ UInt64(place)) & 1 == 0 ? 0xff : readData()
            value |= UInt64(byte) << UInt64(8 * place)
        }
        return value
    }

    public func mmioWrite(offset: UInt64, width: Int, value: UInt64) {
        // Two bytes at once are an index and what goes there.
        for place in 0..<min(width, 8) {
            let byte = UInt8(truncatingIfNeeded: value >> UInt64(8 * place))
            if (offset &+ UInt64(place)) & 1 == 0 {
                // The highest bit of a PC's index port masks NMIs.
                index = byte & 0x7f
            } else {
                writeData(byte)
            }
        }
    }

    private func readData() -> UInt8 {
        if Int(index) == CMOSIndex.centuryPS2 { index = UInt8(CMOSIndex.century) }
        switch Int(index) {
        case CMOSIndex.a: return memory[CMOSIndex.a] | (isUpdating ? 0x80 : 0)
        case CMOSIndex.c: return takeHappened()
        case let index where CMOSClock.isTime(index):
            if isCounting { showTime() }
            return memory[index]
        default: return memory[Int(index)]
        }
    }

    private func writeData(_ value: UInt8) {
        if Int(index) == CMOSIndex.centuryPS2 { index = UInt8(CMOSIndex.century) }
        switch Int(index) {
        case CMOSIndex.a: writeA(value)
        case CMOSIndex.b: writeB(value)
        case CMOSIndex.c, CMOSIndex.d: Log.guestError("rtc: write of the read-only register \(Hex(Int(index)))")
        case CMOSIndex.secondAlarm, CMOSIndex.minuteAlarm, CMOSIndex.hourAlarm:
            settle()
            memory[Int(index)] = value
            serve()
        case let index where CMOSClock.isTime(index) && isCounting:
            settle()
            showTime()
            memory[index] = value
            takeTime()
            serve()
        default: memory[Int(index)] = value
        }
    }

    private static func isTime(_ index: Int) -> Bool {
        switch index {
        case CMOSIndex.second, CMOSIndex.minute, CMOSIndex.hour, CMOSIndex.weekday...CMOSIndex.year,
            CMOSIndex.century:
            true
        default: false
        }
    }

    private func writeA(_ value: UInt8) {
        settle()
        let (wasCounting, wasDividing) = (isCounting, isDividing)
        if wasCounting { showTime() }
        memory[CMOSIndex.a] = value & 0x7f
        // The first update comes half a second after the divider was let go.
        if isDividing, !wasDividing { startHalfSecond() }
        if isCounting, !wasCounting { takeTime() }
        // Periods are counted in the new length from here on.
        settleAnew()
        serve()
    }

    private func writeB(_ value: UInt8) {
        settle()
        let wasCounting = isCounting
        if wasCounting { showTime() }
        memory[CMOSIndex.b] =
            value & CMOSControl.set == 0 ? value : value & ~CMOSInterrupts.updateEnded.rawValue
        if isCounting, !wasCounting { takeTime() }
        serve()
    }

    /// Register C: what has happened since it was read last, which is forgotten.
    private func takeHappened() -> UInt8 {
        settle()
        let value = happened.rawValue | (happened.isDisjoint(with: enabled) ? 0 : 0x80)
        happened = []
        serve()
        return value
    }

    var enabled: CMOSInterrupts { CMOSInterrupts(rawValue: memory[CMOSIndex.b]).intersection(.all) }

    func updateLine() { line.set(!happened.isDisjoint(with: enabled)) }

    // MARK: Device

    /// The time and the memory stay, as they have a battery.
    public func reset() {
        settle()
        index = 0
        memory[CMOSIndex.shutdownStatus] = 0
        memory[CMOSIndex.b] &= ~(CMOSInterrupts.all.rawValue | CMOSControl.squareWave)
        happened = []
        serve()
    }

    public func pause() {
        isRunning = false
        serve()
    }

    public func resume() {
        isRunning = true
        settle()
        serve()
    }
}
