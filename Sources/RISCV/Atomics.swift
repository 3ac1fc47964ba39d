/// The A extension and Zacas. Harts take turns on one thread and a reservation ends with
/// the turn, so plain loads and stores are atomic.
extension UnsafeMutablePointer where Pointee == HartState {
    @inline(never)
    func executeAtomic(_ op: OpPointer, _ d: DecodedOp) -> OpPointer {
        let word = UInt32(bitPattern: d.imm)
        let size = 1 << Int(word >> 12 & 7)
        let function = word >> 27
        let address = x[Int(word >> 15 & 31)]
        guard address & UInt64(size - 1) == 0 else {
            return trap(op, function == 2 ? Cause.loadMisaligned : Cause.storeMisaligned, address)
        }
        let operand = x[Int(word >> 20 & 31)]
        switch function {
        case 2:
            guard let host = hostAddress(address, .load, size: size) else { return faultTrap(op) }
            let value = signedLoad(host, size)
            pointee.reservation = pointee.lastPhysical
            pointee.reservedValue = value
            x[d.destination] = value
        case 3:
            let reservation = pointee.reservation
            pointee.reservation = HartState.noReservation
            guard let host = hostAddress(address, .store, size: size) else { return faultTrap(op) }
            if reservation == pointee.lastPhysical && signedLoad(host, size) == pointee.reservedValue {
                HostMemory.store(host, size, operand)
                x[d.destination] = 0
            } else {
                x[d.destination] = 1
            }
        case 5:
            guard let host = hostForBoth(address, size) else { return faultTrap(op) }
            compareAndSwap(host, size, d.destination, Int(word >> 20 & 31))
        default:
            guard let host = hostForBoth(address, size) else { return faultTrap(op) }
            let old = signedLoad(host, size)
            // Sign extension keeps both orders of 32-bit values.
            let value = combine(function, old, size == 8 ? operand : signExtended(low(operand)))
            HostMemory.store(host, size, value)
            x[d.destination] = old
        }
        return op + d.step
    }

    /// The host address of what is loaded and stored.
    /// - Returns: nil with `fault` set.
    @inline(__always)
    private func hostForBoth(_ address: UInt64, _ size: Int) -> UnsafeMutableRawPointer? {
        let set = pointee.dataTLB + TLB.storeOffset
        // An aligned access is in one page whatever its size.
        if tlbHit(set, address, UInt32.self) { return RISCV.hostAddress(set, address) }
        guard let host = hostAddress(address, .store, size: size) else { return nil }
        // Only PMP can allow a store and no load.
        guard allowsPMP(pointee.lastPhysical, size: UInt64(size), .load, dataMode) else {
            return fail(Cause.storeAccess, address)
        }
        return host
    }

    /// amocas (Zacas): rd is compared and takes the old value; rs2 is stored if they were equal. Of 16 bytes the
    /// second half is in the next register, or zero for x0.
    private func compareAndSwap(_ host: UnsafeMutableRawPointer, _ size: Int, _ destination: Int, _ source: Int) {
        guard size == 16 else {
            let old = signedLoad(host, size)
            let expected = x[destination == 32 ? 0 : destination]
            if old == (size == 8 ? expected : signExtended(low(expected))) { HostMemory.store(host, size, x[source]) }
            x[destination] = old
            return
        }
        let second = host + 8
        let old = (host.load(as: UInt64.self), second.load(as: UInt64.self))
        let isZero = destination == 32
        if old == (isZero ? (0, 0) : (x[destination], x[destination + 1])) {
            host.storeBytes(of: x[source], as: UInt64.self)
            second.storeBytes(of: source == 0 ? 0 : x[source + 1], as: UInt64.self)
        }
        if isZero { return }
        x[destination] = old.0
        x[destination + 1] = old.1
    }

    private func faultTrap(_ op: OpPointer) -> OpPointer { trap(op, pointee.fault.cause, pointee.fault.address) }

    private func signedLoad(_ host: UnsafeMutableRawPointer, _ size: Int) -> UInt64 {
        size == 8 ? host.load(as: UInt64.self) : signExtended(host.load(as: UInt32.self))
    }

    private func combine(_ function: UInt32, _ a: UInt64, _ b: UInt64) -> UInt64 {
        switch function {
        case 0: a &+ b
        case 1: b
        case 4: a ^ b
        case 8: a | b
        case 12: a & b
        case 16: Int64(bitPattern: a) < Int64(bitPattern: b) ? a : b
        case 20: Int64(bitPattern: a) < Int64(bitPattern: b) ? b : a
        case 24: Swift.min(a, b)
        default: Swift.max(a, b)
        }
    }
}
