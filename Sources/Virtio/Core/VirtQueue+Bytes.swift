import BatonRuntime
import Glibc

/// The bytes of the chain that `next()` gave last.
extension VirtQueue {
    /// The readable segments of `chain`.
    @inline(__always)
    public func readable(_ chain: VirtioChain) -> UnsafeMutableBufferPointer<iovec> {
        UnsafeMutableBufferPointer(start: segments, count: chain.readableCount)
    }

    /// The writable segments of `chain`.
    @inline(__always)
    public func writable(_ chain: VirtioChain) -> UnsafeMutableBufferPointer<iovec> {
        UnsafeMutableBufferPointer(start: segments + chain.readableCount, count: chain.writableCount)
    }

    /// Copies from the readable segments, from byte `offset` on.
    /// - Returns: the bytes copied: `target.count`, or fewer at the end.
    public func copyOut(_ chain: VirtioChain, offset: Int, to target: UnsafeMutableRawBufferPointer) -> Int {
        var skip = offset
        var done = 0
        for segment in readable(chain) {
            if skip >= segment.iov_len {
                skip &-= segment.iov_len
                continue
            }
            let count = min(segment.iov_len &- skip, target.count &- done)
            guard count > 0, let to = target.baseAddress, let from = segment.iov_base else { break }
            (to + done).copyMemory(from: from + skip, byteCount: count)
            done &+= count
            skip = 0
        }
        return done
    }

    /// Copies to the writable segments, from byte `offset` on.
    /// - Returns: the bytes copied: `source.count`, or fewer at the end.
    public func copyIn(_ chain: VirtioChain, offset: Int, from source: UnsafeRawBufferPointer) -> Int {
        var skip = offset
        var done = 0
        for index in chain.readableCount..<(chain.readableCount &+ chain.writableCount) {
            let segment = segments[index]
            if skip >= segment.iov_len {
                skip &-= segment.iov_len
                continue
            }
            let count = min(segment.iov_len &- skip, source.count &- done)
            guard count > 0, let from = source.baseAddress, let to = segment.iov_base else { break }
            (to + skip).copyMemory(from: from + done, byteCount: count)
            addressSpace.didWrite(addresses[index] &+ UInt64(truncatingIfNeeded: skip), length: UInt64(count))
            done &+= count
            skip = 0
        }
        return done
    }

    /// Says that the device has stored to the first `length` writable bytes.
    public func didWrite(_ chain: VirtioChain, length: Int) {
        var left = length
        var index = chain.readableCount
        while left > 0, index < chain.readableCount &+ chain.writableCount {
            let count = min(left, segments[index].iov_len)
            addressSpace.didWrite(addresses[index], length: UInt64(count))
            left &-= count
            index &+= 1
        }
    }
}
