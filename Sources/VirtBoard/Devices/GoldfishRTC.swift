import BatonRuntime
import CBaton

/// Google's goldfish real-time clock: the time of day plus an offset
/// that the guest sets, in nanoseconds, and one alarm.
public final class GoldfishRTC: MMIODevice, Device {
    public let stateName = "rtc"
    /// Bytes that the device tree gives it.
    public static let size: UInt64 = 0x1000
    /// Bytes that it answers.
    public static let registersSize: UInt64 = 0x24

    private let loop: EventLoop
    private let line: InterruptLine
    /// Reads the time of day, by default the host's.
    private let hostNow: () -> Int64
    private var timer: EventLoop.Timer?
    private var isRunning = false

    private var offset: Int64 = 0
    private var alarm: Int64 = 0
    private var alarmArmed = false
    private var interruptPending = false
    private var interruptEnabled = false
    /// The high words: latched when the low one is read, and as written last.
    private var timeHigh: UInt32 = 0
    private var writtenTimeHigh: UInt32 = 0
    private var alarmHigh: UInt32 = 0

    public init(loop: EventLoop, line: InterruptLine, hostNow: @escaping () -> Int64 = cbaton_realtime_ns) {
        self.loop = loop
        self.line = line
        self.hostNow = hostNow
    }

    private var now: Int64 { hostNow() &+ offset }

    private func update() { line.set(interruptPending && interruptEnabled) }

    /// Sets the host's timer for the alarm, or fires it when it is due.
    private func arm() {
        timer?.cancel()
        timer = nil
        guard alarmArmed, isRunning else { return }
        let (left, overflow) = alarm.subtractingReportingOverflow(now)
        if left <= 0 && !overflow || overflow && alarm < 0 { return fire() }
        // A far alarm is looked at again in a day: the host's real-time clock
        // may be set meanwhile, the loop's timers do not follow it.
        let wait = overflow ? GoldfishRTC.day : min(left, GoldfishRTC.day)
        timer = loop.schedule(at: EventLoop.now + wait) { [weak self] in self?.arm() }
    }
    private static let day: Int64 = 86_400_000_000_000

    private func fire() {
        alarmArmed = false
        interruptPending = true
        update()
    }

    // MARK: Registers

    public func accepts(offset: UInt64, width: Int) -> Bool { width >= 4 }

    public func mmioRead(offset: UInt64, width: Int) -> UInt64 {
        if width == 8 { return mmioReadHalves(offset: offset) }
        switch offset {
        case 0x00:
            let time = UInt64(bitPattern: now)
            timeHigh = UInt32(truncatingIfNeeded: time >> 32)
            return time & 0xffff_ffff
        case 0x04: return UInt64(timeHigh)
        case 0x08: return UInt64(bitPattern: alarm) & 0xffff_ffff
        case 0x0c: return UInt64(bitPattern: alarm) >> 32
        case 0x10: return interruptEnabled ? 1 : 0
        case 0x18: return alarmArmed ? 1 : 0
        default:
            Log.guestError("rtc: read of the register at \(Hex(offset))")
            return 0
        }
    }

    public func mmioWrite(offset: UInt64, width: Int, value: UInt64) {
        if width == 8 { return mmioWriteHalves(offset: offset, value: value) }
        let word = UInt32(truncatingIfNeeded: value)
        switch offset {
        case 0x00:
            self.offset = Int64(bitPattern: UInt64(writtenTimeHigh) << 32 | UInt64(word)) &- hostNow()
            if alarmArmed { arm() }
        case 0x04: writtenTimeHigh = word
        case 0x08:
            alarm = Int64(bitPattern: UInt64(alarmHigh) << 32 | UInt64(word))
            alarmArmed = true
            arm()
        case 0x0c: alarmHigh = word
        case 0x10:
            interruptEnabled = word & 1 != 0
            update()
        case 0x14:
            alarmArmed = false
            arm()
        case 0x1c:
            interruptPending = false
            update()
        default: Log.guestError("rtc: write of the register at \(Hex(offset))")
        }
    }

    // MARK: Device

    public func reset() {
        // The time that the guest has set stays, as in a clock with a battery.
        alarm = 0
        alarmArmed = false
        interruptPending = false
        interruptEnabled = false
        timeHigh = 0
        writtenTimeHigh = 0
        alarmHigh = 0
        arm()
        update()
    }

    public func pause() {
        isRunning = false
        arm()
    }

    public func resume() {
        isRunning = true
        arm()
    }

    public func save(to writer: inout StateWriter) {
        writer.put("offset", UInt64(bitPattern: offset))
        writer.put("alarm", UInt64(bitPattern: alarm))
        writer.put("alarm-armed", alarmArmed)
        writer.put("interrupt-pending", interruptPending)
        writer.put("interrupt-enabled", interruptEnabled)
        writer.put("high-words", [UInt64(timeHigh), UInt64(writtenTimeHigh), UInt64(alarmHigh)])
    }

    public func loader(of reader: StateReader) throws(VMMError) -> () -> Void {
        let newOffset = Int64(bitPattern: try reader.unsigned("offset"))
        let newAlarm = Int64(bitPattern: try reader.unsigned("alarm"))
        let armed = try reader.bool("alarm-armed")
        let isPending = try reader.bool("interrupt-pending")
        let isEnabled = try reader.bool("interrupt-enabled")
        let words = try reader.array("high-words", count: 3...3)
        guard words.allSatisfy({ $0 <= UInt64(UInt32.max) }) else {
            throw VMMError("field 'high-words' of section '\(reader.section)' is out of range")
        }
        try reader.finish()
        return { [self] in
            offset = newOffset
            alarm = newAlarm
            alarmArmed = armed
            interruptPending = isPending
            interruptEnabled = isEnabled
            timeHigh = UInt32(truncatingIfNeeded: words[0])
            writtenTimeHigh = UInt32(truncatingIfNeeded: words[1])
            alarmHigh = UInt32(truncatingIfNeeded: words[2])
            update()
        }
    }
}
