import BatonRuntime
import Glibc

/// Guest RAM as a server reaches it: by mapping the descriptors of the blocks
/// that are shared memory, and by asking for the rest.
struct VFIOUserRAM {
    struct Range {
        let start: UInt64
        let size: UInt64
        let readOnly: Bool
        /// Borrowed from the RAM block, with where the range is in it; nil when
        /// the server has to ask. What the guest may not write is not given
        /// away: a descriptor could be written to.
        let memory: (fd: Int32, offset: UInt64)?
    }

    let ranges: [Range]

    init(_ space: AddressSpace) {
        ranges = space.ramRanges.map { range in
            let isShared = range.block.isPreservable && !range.readOnly
            return Range(
                start: range.start, size: range.size, readOnly: range.readOnly,
                memory: isShared ? (range.block.fd, UInt64(range.host - range.block.host)) : nil)
        }
    }

    /// For comparison with what the process before had the server map.
    var numbers: [UInt64] {
        ranges.flatMap { [$0.start, $0.size, $0.readOnly ? 1 : 0, $0.memory?.offset ?? UInt64.max] }
    }
}

extension VFIOUserConnection {
    /// Tells the server where guest RAM is.
    func mapRAM() throws(VMMError) {
        for range in ram.ranges {
            let flags = VFIOUser.MapFlag.read | (range.readOnly ? 0 : VFIOUser.MapFlag.write)
            let message =
                littleEndianBytes(32 as UInt32) + littleEndianBytes(flags)
                + littleEndianBytes(range.memory?.offset ?? 0) + littleEndianBytes(range.start)
                + littleEndianBytes(range.size)
            let answer = call(.dmaMap, message, fds: range.memory.map { [$0.fd] } ?? [], size: 0...32)
            guard case .failure = answer else { continue }
            throw explain(answer, "cannot map \(range.size) bytes of RAM at \(Hex(range.start)) for DMA")
        }
    }

    /// Serves a request of the server: DMA where it has not mapped RAM.
    func serve(_ command: UInt16, _ payload: [UInt8]) -> Result<[UInt8], VFIOUserErrno> {
        func refuse(_ code: Int32, _ what: String) -> Result<[UInt8], VFIOUserErrno> {
            Log.guestError("\(Self.label(name)): \(what)")
            return .failure(VFIOUserErrno(code: code))
        }
        var cursor = ByteCursor(payload[...])
        let kind = VFIOUser.Command(rawValue: command)
        guard kind == .dmaRead || kind == .dmaWrite else { return refuse(EINVAL, "request \(command) of the server") }
        guard let address = cursor.unsigned(UInt64.self), let count = cursor.unsigned(UInt64.self),
            count > 0, count <= UInt64(VFIOUser.maxTransfer),
            cursor.remaining == (kind == .dmaWrite ? Int(count) : 0)
        else { return refuse(EINVAL, "DMA request of \(payload.count) bytes") }
        guard let host = space.dma(address, length: count, writing: kind == .dmaWrite) else {
            return refuse(EFAULT, "DMA of \(count) bytes at \(Hex(address)), where no such RAM is")
        }
        let head = Array(payload.prefix(VFIOUser.dmaAccessSize))
        if kind == .dmaRead {
            return .success(head + UnsafeRawBufferPointer(start: host, count: Int(count)))
        }
        payload.withUnsafeBytes { bytes in
            guard let base = bytes.baseAddress else { return }
            host.copyMemory(from: base + VFIOUser.dmaAccessSize, byteCount: Int(count))
        }
        space.didWrite(address, length: count)
        return .success(head)
    }
}
