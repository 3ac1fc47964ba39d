/// The A extension. Harts take turns on one thread and a reservation ends with
/// the turn, so plain loads and stores are atomic.
extension UnsafeMutablePointer where Pointee == HartState {
    @inline(never)
    func executeAtomic(_ op: OpPointer, _ d: DecodedOp) -> OpPointer {
        let word = UInt32(bitPattern: d.imm)
        let size = word >> 12 & 7 == 3 ? 8 : 4
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
        default:
            let host: UnsafeMutableRawPointer
            let set = pointee.dataTLB + TLB.storeOffset
            if tlbHit(set, address, UInt32.self) {
                host = RISCV.hostAddress(set, address)
            } else if let slow = hostAddress(address, .store, size: size) {
                // Only PMP can allow a store and no load.
                guard allowsPMP(pointee.lastPhysical, size: UInt64(size), .load, dataMode) else {
                    return trap(op, Cause.storeAccess, address)
                }
                host = slow
            } else {
                return faultTrap(op)
            }
            let old = signedLoad(host, size)
            // Sign extension keeps both orders of 32-bit values.
            let value = combine(function, old, size == 8 ? operand : signExtended(low(operand)))
            HostMemory.store(host, size, value)
            x[d.destination] = old
        }
        return op + d.step
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
