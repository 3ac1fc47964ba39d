import BatonRuntime

/// Transfers between an item and guest memory ("Guest-side DMA Interface" in docs/specs/fw_cfg.rst).
extension FwCfg {
    private enum Control {
        static let error: UInt32 = 0x01
        static let read: UInt32 = 0x02
        static let skip: UInt32 = 0x04
        static let select: UInt32 = 0x08
        static let write: UInt32 = 0x10
    }

    private static let requestSize: UInt64 = 16
    /// Zeroes that a transfer stores at most behind the end of an item: a guest must not make the VMM fill gigabytes.
    private static let zeroLimit = 1 << 20

    /// Does what the request at `address` in guest memory asks for: control, length, address; big endian.
    func transfer(at address: UInt64) {
        guard let request = space.dma(address, length: FwCfg.requestSize, writing: true) else {
            Log.guestError("fw_cfg: no request in memory at \(Hex(address))")
            if let control = space.dma(address, length: 4, writing: true) { finish(Control.error, control, address) }
            return
        }
        let control = UInt32(bigEndian: request.loadUnaligned(as: UInt32.self))
        let length = UInt32(bigEndian: request.loadUnaligned(fromByteOffset: 4, as: UInt32.self))
        let target = UInt64(bigEndian: request.loadUnaligned(fromByteOffset: 8, as: UInt64.self))
        if control & Control.select != 0 { select(UInt16(truncatingIfNeeded: control >> 16)) }

        var isDone = true
        if control & Control.read != 0 {
            isDone = read(Int(length), to: target)
        } else if control & Control.write != 0 {
            // As in QEMU, whose items can be written only where they say so.
            isDone = length == 0
            skip(Int(length))
        } else if control & Control.skip != 0 {
            skip(Int(length))
        }
        if !isDone { Log.guestError("fw_cfg: transfer of \(length) bytes at \(Hex(target)) failed") }
        finish(isDone ? 0 : Control.error, request, address)
    }

    private func finish(_ result: UInt32, _ control: UnsafeMutableRawPointer, _ address: UInt64) {
        control.storeBytes(of: result.bigEndian, as: UInt32.self)
        space.didWrite(address, length: 4)
    }

    private func skip(_ length: Int) {
        let end = content.count
        if offset < end { offset += min(length, end - offset) }
    }

    /// - Returns: false when memory is missing; what comes before it has been stored.
    private func read(_ length: Int, to target: UInt64) -> Bool {
        let bytes = content
        let start = min(offset, bytes.count)
        let count = min(length, bytes.count - start)
        guard length - count <= FwCfg.zeroLimit else { return false }
        offset = max(offset, start + count)
        let stored = bytes.withUnsafeBytes { bytes in
            forEachPiece(of: target, length: count) { host, done, size in
                let piece = bytes[(start + done)..<(start + done + size)]
                UnsafeMutableRawBufferPointer(start: host, count: size).copyBytes(from: piece)
            }
        }
        return stored
            && forEachPiece(of: target &+ UInt64(count), length: length - count) { host, _, size in
                host.initializeMemory(as: UInt8.self, repeating: 0, count: size)
            }
    }

    /// Walks over guest memory, which may be several ranges.
    /// - Parameter body: gets the host's address of a piece, the bytes before it, and its size.
    /// - Returns: false when not all of it is memory that may be written.
    private func forEachPiece(
        of target: UInt64, length: Int, _ body: (UnsafeMutableRawPointer, Int, Int) -> Void
    ) -> Bool {
        var done = 0
        while done < length {
            let address = target &+ UInt64(done)
            guard let range = space.ramRange(containing: address), !range.readOnly else { return false }
            let size = min(length - done, Int(clamping: range.end - address))
            body(range.host + Int(address - range.start), done, size)
            space.didWrite(address, length: UInt64(size))
            done += size
        }
        return true
    }
}
