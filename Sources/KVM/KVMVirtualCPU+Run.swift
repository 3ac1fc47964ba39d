import BatonRuntime
import CKVM
import Glibc

/// The thread's loop, and what a CPU cannot do without the VMM.
extension KVMVirtualCPU {
    /// Runs the guest until the CPU is to stop. What was in hand is then finished: KVM takes the result of an access
    /// over when it is entered again, also when it is to leave at once.
    func runGuest() {
        let (fd, run, exits) = (file.fd, run, exits)
        hasTimerRunOut = false
        var refusals = 0
        var lacksRole = !hasRole
        while true {
            let result = ckvm_run(fd)
            exits.count(run, result)
            if result == 0 {
                refusals = 0
                if lacksRole {
                    enterRole()
                    lacksRole = false
                }
                guard carryOut(run) else { return }
            } else if result == -EINTR || result == -EAGAIN {
                if ckvm_immediate_exit(run) != 0, settleTimer() { return }
                guard result == -EAGAIN else { continue }
                refusals += 1
                guard awaitRetry(refusals) else { return fail(runError(EAGAIN)) }
            } else {
                return fail(runError(-result))
            }
        }
    }

    /// KVM says EAGAIN once when a CPU that waits is told to start. It says so each time when it cannot make the thread of its
    /// own that it needs in this process (the limits of processes: RLIMIT_NPROC, `pids.max`).
    /// - Parameter refusals: how often KVM has said so, one time after another.
    /// - Returns: false when it has for a second.
    private func awaitRetry(_ refusals: Int) -> Bool {
        guard refusals > 100 else { return true }
        guard refusals <= 200 else { return false }
        // A signal that is to stop the CPU ends it.
        var time = timespec(tv_sec: 0, tv_nsec: 10_000_000)
        nanosleep(&time, nil)
        return true
    }

    /// - Returns: false when the CPU must not go on.
    @inline(__always)
    func carryOut(_ run: UnsafeMutablePointer<kvm_run>) -> Bool {
        switch Int32(bitPattern: ckvm_exit_reason(run)) {
        case KVM_EXIT_IO: accessPort(run)
        case KVM_EXIT_MMIO: accessMemory(run)
        default: return carryOutRare(run)
        }
        return true
    }

    // MARK: Accesses

    /// Nothing answers: reads are ones, as on a bus that nobody drives.
    private static let nobody = UInt64.max

    private func accessPort(_ run: UnsafeMutablePointer<kvm_run>) {
        let io = ckvm_exit_io(run)
        let (width, port) = (Int(io.size), UInt64(io.port))
        var place = UnsafeMutableRawPointer(run) + Int(truncatingIfNeeded: io.data_offset)
        let space = vm.portSpace
        vm.lock.acquire()
        // More than one for a string instruction.
        for _ in 0..<Int(io.count) {
            if io.is_write != 0 {
                _ = space.mmioWrite(port, width: width, value: KVMVirtualCPU.load(place, width))
            } else {
                KVMVirtualCPU.store(space.mmioRead(port, width: width) ?? KVMVirtualCPU.nobody, place, width)
            }
            place += width
        }
        vm.lock.release()
    }

    private static func load(_ place: UnsafeMutableRawPointer, _ width: Int) -> UInt64 {
        switch width {
        case 1: UInt64(place.load(as: UInt8.self))
        case 2: UInt64(place.loadUnaligned(as: UInt16.self))
        default: UInt64(place.loadUnaligned(as: UInt32.self))
        }
    }

    private static func store(_ value: UInt64, _ place: UnsafeMutableRawPointer, _ width: Int) {
        switch width {
        case 1: place.storeBytes(of: UInt8(truncatingIfNeeded: value), as: UInt8.self)
        case 2: place.storeBytes(of: UInt16(truncatingIfNeeded: value), as: UInt16.self)
        default: place.storeBytes(of: UInt32(truncatingIfNeeded: value), as: UInt32.self)
        }
    }

    private func accessMemory(_ run: UnsafeMutablePointer<kvm_run>) {
        let access = ckvm_exit_mmio(run)
        let (address, width) = (access.address, Int(access.length))
        let space = vm.addressSpace
        vm.lock.acquire()
        if width == 1 || width == 2 || width == 4 || width == 8 {
            if access.is_write != 0 {
                let mask = width == 8 ? UInt64.max : 1 << UInt64(8 * width) - 1
                _ = space.mmioWrite(address, width: width, value: access.value & mask)
            } else {
                ckvm_set_mmio_value(run, space.mmioRead(address, width: width) ?? KVMVirtualCPU.nobody)
            }
        } else {
            accessBytes(run, access, min(width, 8))
        }
        vm.lock.release()
    }

    /// A part of an access that crosses a page.
    private func accessBytes(_ run: UnsafeMutablePointer<kvm_run>, _ access: ckvm_mmio, _ width: Int) {
        var value: UInt64 = 0
        for offset in 0..<UInt64(max(0, width)) {
            let (address, shift) = (access.address &+ offset, 8 * offset)
            if access.is_write != 0 {
                _ = vm.addressSpace.mmioWrite(address, width: 1, value: access.value >> shift & 0xff)
            } else {
                value |= ((vm.addressSpace.mmioRead(address, width: 1) ?? KVMVirtualCPU.nobody) & 0xff) << shift
            }
        }
        if access.is_write == 0 { ckvm_set_mmio_value(run, value) }
    }

    // MARK: The rest

    @inline(never)
    private func carryOutRare(_ run: UnsafeMutablePointer<kvm_run>) -> Bool {
        let reason = Int32(bitPattern: ckvm_exit_reason(run))
        switch reason {
        case KVM_EXIT_INTR, KVM_EXIT_IRQ_WINDOW_OPEN, KVM_EXIT_SET_TPR, KVM_EXIT_HLT, KVM_EXIT_DEBUG:
            return ckvm_immediate_exit(run) == 0
        case KVM_EXIT_SHUTDOWN:
            // A triple fault, which resets a PC.
            withLock { vm.guestRequestedReset() }
        case KVM_EXIT_SYSTEM_EVENT:
            switch Int(ckvm_system_event(run)) {
            case CKVM_SYSTEM_EVENT_SHUTDOWN: withLock { vm.guestRequestedShutdown(status: 0) }
            case CKVM_SYSTEM_EVENT_RESET: withLock { vm.guestRequestedReset() }
            default: fail("KVM: unexpected system event \(ckvm_system_event(run))")
            }
        case KVM_EXIT_INTERNAL_ERROR: fail(internalError(run))
        case KVM_EXIT_FAIL_ENTRY:
            fail("KVM: entry failed, hardware error \(Hex(ckvm_entry_failure(run)))")
        default: fail("KVM: unknown exit, hardware reason \(reason)")
        }
        return false
    }

    private func withLock(_ body: () -> Void) {
        vm.lock.acquire()
        body()
        vm.lock.release()
    }

    private func internalError(_ run: UnsafeMutablePointer<kvm_run>) -> String {
        let suberror = ckvm_suberror(run)
        let count = min(ckvm_error_words(run), 16)
        let words = (0..<count).map { " \(Hex(ckvm_error_word(run, $0)))" }.joined()
        let reason =
            switch Int32(bitPattern: suberror) {
            case KVM_INTERNAL_ERROR_EMULATION: " (emulation failure)"
            case KVM_INTERNAL_ERROR_DELIVERY_EV: " (an event during the delivery of another)"
            default: ""
            }
        return "KVM internal error. Suberror: \(suberror)\(reason)" + (count > 0 ? "; extra data:\(words)" : "")
    }

    private func runError(_ code: Int32) -> String {
        // Also with an exit's reason of its own, KVM_EXIT_MEMORY_FAULT.
        let what =
            switch code {
            case EFAULT: " (the guest's memory is not there)"
            case EAGAIN: " (KVM needs a thread of its own: RLIMIT_NPROC or the control group's pids.max leaves no room)"
            default: ""
            }
        return VMMError.system("error: kvm run failed", errno: code).message + what
    }

    /// Stops the guest, which stays to be looked at.
    private func fail(_ message: String) {
        withLock {
            Report.error(VMMError("CPU \(index): \(message)", hint: registersText))
            vm.stop(.internalError)
        }
    }
}
