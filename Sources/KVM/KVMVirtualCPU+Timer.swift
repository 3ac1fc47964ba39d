import BatonRuntime
import CKVM
import Glibc

/// What KVM does not tell of a local APIC's timer that counts down (Intel SDM volume 3, 12.5.4): whether it has run out
/// and the interrupt is still to come. And a timer that has run out runs out again when its state is set: KVM takes the
/// rest, 0, for the time that is left.
extension KVMVirtualCPU {
    private static let timerMode = 0x320
    private static let initialCount = 0x380
    private static let currentCount = 0x390

    private static func word(_ offset: Int, _ lapic: [UInt8]) -> UInt32 {
        lapic[offset..<offset + 4].reversed().reduce(0) { $0 << 8 | UInt32($1) }
    }
    private static func put(_ value: UInt32, _ offset: Int, _ lapic: inout [UInt8]) {
        for place in 0..<4 { lapic[offset + place] = UInt8(truncatingIfNeeded: value >> UInt32(8 * place)) }
    }

    /// The two lowest modes count from an initial count: once, and again and again. Nil for a deadline.
    private static func countsOnce(_ lapic: [UInt8]) -> Bool? {
        switch word(timerMode, lapic) >> 17 & 3 {
        case 0: true
        case 1: false
        default: nil
        }
    }

    /// Has the interrupt of a timer that has run out come, so that a state has it. Of the CPU's thread, which has just
    /// left the guest: KVM does this on the way into the guest and out of it only, and the thread that does it must be
    /// the one that runs the CPU, as a change of threads takes the kernel milliseconds.
    /// - Returns: false when that is to be tried again, as there was something to carry out.
    func settleTimer() -> Bool {
        hasTimerRunOut = false
        var lapic = [UInt8](repeating: 0, count: CPUState.lapicSize)
        guard lapic.withUnsafeMutableBytes({ file.call(CKVM_GET_LAPIC, bytes: $0) }) == 0,
            let once = KVMVirtualCPU.countsOnce(lapic), KVMVirtualCPU.word(KVMVirtualCPU.initialCount, lapic) != 0
        else { return true }
        let hasRunOut = once && KVMVirtualCPU.word(KVMVirtualCPU.currentCount, lapic) == 0
        guard hasRunOut || !once else { return true }
        let result = ckvm_enter_and_leave(file.fd, run)
        hasTimerRunOut = result == -EINTR && hasRunOut
        return result != 0 || !carryOut(run)
    }

    /// Describes the timer so that it goes on from the state and does not run out twice.
    func describeTimer(_ lapic: inout [UInt8]) {
        guard KVMVirtualCPU.countsOnce(lapic) == true, KVMVirtualCPU.word(KVMVirtualCPU.initialCount, lapic) != 0 else {
            return
        }
        if hasTimerRunOut {
            // As one that was never started, which a guest can tell only by what it has started it with itself.
            KVMVirtualCPU.put(0, KVMVirtualCPU.initialCount, &lapic)
        } else if KVMVirtualCPU.word(KVMVirtualCPU.currentCount, lapic) == 0 {
            // It has run out since the CPU stopped: its interrupt comes at once.
            KVMVirtualCPU.put(1, KVMVirtualCPU.currentCount, &lapic)
        }
    }
}
