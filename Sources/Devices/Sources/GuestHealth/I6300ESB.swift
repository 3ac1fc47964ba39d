import BatonRuntime
import PCI

/// The watchdog timer of Intel's 6300ESB I/O controller hub (its data sheet, chapter 16), as QEMU's `i6300esb` has it.
///
/// The guest loads two periods and starts the first. If it is not reloaded in time the second begins, and at the end of
/// that something is done with the machine (`VirtualMachine.watchdogExpired`). Each change of a register in memory needs
/// 0x80 and 0x86 to be written to RELOAD before. As in QEMU the interrupt at the end of the first period is not sent.
///
/// The time is that for which the guest runs: it stands still with the VM, over an update too.
public final class I6300ESB: PCIFunction {
    /// Registers in configuration space.
    private enum Config {
        /// 16 bits.
        static let configuration = 0x60
        /// 8 bits.
        static let lock = 0x68
    }
    /// Registers in BAR 0.
    private enum Register {
        static let timer1: UInt64 = 0x00
        static let timer2: UInt64 = 0x04
        static let reload: UInt64 = 0x0c
        static let size: UInt64 = 0x10
    }
    /// Bits of the configuration register: the periods' unit is 2^5 and not 2^15 cycles; nothing is done at the end.
    private static let isFast: UInt16 = 1 << 2, isHarmless: UInt16 = 1 << 5
    private static let writableConfiguration: UInt16 = 0x37
    /// Bits of the lock register: nothing can be changed any more; the timer runs; it begins again when it has ended.
    private static let isLocked: UInt8 = 1 << 0, isEnabled: UInt8 = 1 << 1, isFree: UInt8 = 1 << 2
    /// Bits of RELOAD. Linux looks for the second one three places higher, which QEMU makes good.
    private static let reload: UInt64 = 1 << 8, timedOut: UInt64 = 1 << 9 | 1 << 12
    private static let longestPeriod: UInt32 = 0xf_ffff
    /// Nanoseconds of a cycle of PCI's clock.
    private static let cycle: Int64 = 30
    /// Nanoseconds between two ends of a period, however short: what runs freely must not keep the loop busy.
    private static let shortestWait: Int64 = 1_000_000

    private enum Stage: UInt64 {
        case first = 1
        case second = 2
    }

    private var preloads: [UInt32] = [I6300ESB.longestPeriod, I6300ESB.longestPeriod]
    private var stage = Stage.first
    /// How much of 0x80 and 0x86 has come.
    private var unlocked: UInt64 = 0
    /// Whether it has acted since the guest has cleared this; a reset leaves it.
    private var hasTimedOut = false
    /// Nanoseconds to the stage's end while the machine stands; nil while the timer is off.
    private var left: Int64?
    /// CLOCK_MONOTONIC at the stage's end while the machine runs; nil while the timer is off.
    private var deadline: Int64?
    private var timer: EventLoop.Timer?
    private var isRunning = false

    public init(vm: VirtualMachine, id: String?) {
        super.init(
            vm: vm, model: "i6300esb", id: id,
            identity: PCIIdentity(
                vendor: 0x8086, device: 0x25ab, classCode: 0x0880, subsystemVendor: ECAMHostBridge.subsystem.vendor,
                subsystem: ECAMHostBridge.subsystem.device, interruptPin: 0))
        let bar = PCIBar(index: 0, space: .memory32, size: Register.size)
        bar.add(registers: Registers(self), size: Register.size)
        add(bar)
        config.setWritable(Config.configuration, I6300ESB.writableConfiguration)
        config.setWritable(Config.lock, I6300ESB.isLocked | I6300ESB.isEnabled | I6300ESB.isFree)
    }

    // MARK: Registers in configuration space

    private var configuration: UInt16 { config.value(Config.configuration) }
    private var lock: UInt8 { config.value(Config.lock) }

    public override func writeConfig(_ offset: Int, width: Int, value: UInt32) {
        let before = lock
        super.writeConfig(offset, width: width, value: value)
        if before & I6300ESB.isLocked != 0 { return config.update(Config.lock, before) }
        guard (before ^ lock) & I6300ESB.isEnabled != 0 else { return }
        if lock & I6300ESB.isEnabled != 0 { begin(.first) } else { disarm() }
    }

    // MARK: Registers in memory

    private final class Registers: MMIODevice {
        unowned let device: I6300ESB
        init(_ device: I6300ESB) { self.device = device }
        func accepts(offset: UInt64, width: Int) -> Bool { width <= 4 && offset % UInt64(width) == 0 }
        func mmioRead(offset: UInt64, width: Int) -> UInt64 { device.read(offset, width) }
        func mmioWrite(offset: UInt64, width: Int, value: UInt64) { device.write(offset, width, value) }
    }

    private func read(_ offset: UInt64, _ width: Int) -> UInt64 {
        guard offset == Register.reload, width == 2, hasTimedOut else { return 0 }
        return I6300ESB.timedOut
    }

    private func write(_ offset: UInt64, _ width: Int, _ value: UInt64) {
        switch (offset, value, unlocked) {
        case (Register.reload, 0x80, _): unlocked = 1
        case (Register.reload, 0x86, 1): unlocked = 2
        case (_, _, 2):
            unlocked = 0
            switch (offset, width) {
            case (Register.reload, 2):
                if value & I6300ESB.reload != 0, lock & I6300ESB.isEnabled != 0 { begin(.first) }
                if value & I6300ESB.timedOut != 0 { hasTimedOut = false }
            case (Register.timer1, 4): preloads[0] = UInt32(truncatingIfNeeded: value) & I6300ESB.longestPeriod
            case (Register.timer2, 4): preloads[1] = UInt32(truncatingIfNeeded: value) & I6300ESB.longestPeriod
            default: Log.guestError("\(stateName): write of \(width) bytes at \(Hex(offset))")
            }
        default: Log.guestError("\(stateName): write at \(Hex(offset)) without 0x80 and 0x86 before")
        }
    }

    // MARK: Time

    private func begin(_ stage: Stage) {
        self.stage = stage
        let preload = Int64(preloads[stage == .first ? 0 : 1])
        arm(preload << (configuration & I6300ESB.isFast != 0 ? 5 : 15) * I6300ESB.cycle)
    }

    private func arm(_ nanoseconds: Int64) {
        disarm()
        guard isRunning else { return left = nanoseconds }
        deadline = EventLoop.now + nanoseconds
        wait()
    }

    private func wait() {
        guard let deadline else { return }
        let end = max(deadline, EventLoop.now + I6300ESB.shortestWait)
        timer = vm.loop.schedule(at: end) { [weak self] in self?.expire() }
    }

    private func disarm() {
        timer?.cancel()
        (timer, deadline, left) = (nil, nil, nil)
    }

    private func expire() {
        guard isRunning, deadline != nil else { return }
        disarm()
        guard stage == .second else { return begin(.second) }
        let isFree = lock & I6300ESB.isFree != 0
        if configuration & I6300ESB.isHarmless == 0 {
            hasTimedOut = true
            resetTimer()
            return vm.watchdogExpired()
        }
        if isFree { begin(.first) }
    }

    /// Everything but whether it has acted.
    private func resetTimer() {
        disarm()
        config.update(Config.configuration, 0 as UInt16)
        config.update(Config.lock, 0 as UInt8)
        preloads = [I6300ESB.longestPeriod, I6300ESB.longestPeriod]
        stage = .first
        unlocked = 0
    }

    // MARK: Device

    public override func resetFunction() { resetTimer() }

    public override func pause() {
        isRunning = false
        guard let deadline else { return }
        let rest = max(0, deadline - EventLoop.now)
        disarm()
        left = rest
    }

    public override func resume() {
        isRunning = true
        guard let rest = left else { return }
        arm(rest)
    }

    public override func saveFunction(to writer: inout StateWriter) {
        writer.put("preloads", preloads.map { UInt64($0) })
        writer.put("stage", stage.rawValue)
        writer.put("unlocked", unlocked)
        writer.put("has-timed-out", hasTimedOut)
        if let left { writer.put("left-ns", UInt64(left)) }
    }

    public override func loadFunction(from reader: StateReader) throws(VMMError) -> () -> Void {
        func wrong(_ field: String) -> VMMError {
            VMMError("field '\(field)' of section '\(reader.section)' is out of range")
        }
        let newPreloads = try reader.array("preloads", count: 2...2)
        guard newPreloads.allSatisfy({ $0 <= UInt64(I6300ESB.longestPeriod) }) else { throw wrong("preloads") }
        guard let newStage = Stage(rawValue: try reader.unsigned("stage", in: 1...2)) else { throw wrong("stage") }
        let newUnlocked = try reader.unsigned("unlocked", in: 0...2)
        let newTimedOut = try reader.bool("has-timed-out")
        let longest = Int64(I6300ESB.longestPeriod) << 15 * I6300ESB.cycle
        let newLeft = reader.has("left-ns") ? Int64(try reader.unsigned("left-ns", in: 0...UInt64(longest))) : nil
        return { [self] in
            disarm()
            preloads = newPreloads.map { UInt32($0) }
            (stage, unlocked, hasTimedOut, left) = (newStage, newUnlocked, newTimedOut, newLeft)
        }
    }
}
