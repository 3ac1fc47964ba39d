import BatonRuntime
import InstructionSets

/// Zicbom and Zicboz. Nothing has a cache of its own here, so that to write a block back or to drop it is to look
/// whether the hart may.
enum CacheBlock {
    /// Bytes of a block.
    static let size = Int(RISCVExtensions.cacheBlockSize)
}

extension UnsafeMutablePointer where Pointee == HartState {
    /// cbo.inval, cbo.clean, cbo.flush and cbo.zero; the instruction word is the op's immediate.
    @inline(never)
    func executeCacheBlock(_ op: OpPointer, _ d: DecodedOp) -> OpPointer {
        let word = UInt32(bitPattern: d.imm)
        let function = word >> 20
        let needed = function == 0 ? EnvCfg.cbie : function == 4 ? EnvCfg.cbze : EnvCfg.cbcfe
        guard pointee.mode == Mode.machine || pointee.menvcfg & needed != 0,
            pointee.mode != Mode.user || pointee.senvcfg & needed != 0
        else { return illegal(op, word) }
        let address = x[d.source1]
        guard function == 4 ? zeroBlock(address) : mayManageBlock(address) else {
            // Faults have the address of rs1, and not that of the block (CMO 1.0, 2.5.3).
            return trap(op, pointee.fault.cause, address)
        }
        return op + d.step
    }

    /// Whether a load or a store of the block is allowed; else it is a store's fault.
    private func mayManageBlock(_ address: UInt64) -> Bool {
        let block = address & ~UInt64(CacheBlock.size - 1)
        return translate(block, .load, size: CacheBlock.size) != nil
            || translate(block, .store, size: CacheBlock.size) != nil
    }

    private func zeroBlock(_ address: UInt64) -> Bool {
        let block = address & ~UInt64(CacheBlock.size - 1)
        guard let physical = translate(block, .store, size: CacheBlock.size) else { return false }
        if let range = pointee.cache.pointee.range(containing: physical), !range.pointee.hasDevice {
            // As with stores to it, which change nothing.
            if range.pointee.readOnly { return true }
            guard let host = hostAddress(block, .store, size: CacheBlock.size) else { return false }
            host.initializeMemory(as: UInt8.self, repeating: 0, count: CacheBlock.size)
            return true
        }
        for offset in stride(from: 0, to: UInt64(CacheBlock.size), by: 8) {
            guard store(block + offset, size: 8, 0) else { return false }
        }
        return true
    }
}
