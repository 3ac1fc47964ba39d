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

    /// The parts of `segments` that have the bytes from `offset` on.
    /// - Parameters:
    ///   - offset: at most the segments' length.
    ///   - count: of bytes, within the segments.
    ///   - parts: where the result is put; room for as many as there are segments.
    func slice(
        _ segments: UnsafeMutableBufferPointer<iovec>, offset: Int, count: Int, into parts: UnsafeMutablePointer<iovec>
    ) -> UnsafeBufferPointer<iovec> {
        var skip = offset
        var left = count
        var used = 0
        for segment in segments where left > 0 {
            if skip >= segment.iov_len {
                skip &-= segment.iov_len
                continue
            }
            let length = min(segment.iov_len &- skip, left)
            parts[used] = iovec(iov_base: segment.iov_base.map { $0 + skip }, iov_len: length)
            used &+= 1
            left &-= length
            skip = 0
        }
        return UnsafeBufferPointer(start: parts, count: used)
    }

    /// Says that the device has stored to `length` writable bytes, from byte
    /// `offset` on.
    public func didWrite(_ chain: VirtioChain, offset: Int = 0, length: Int) {
        var skip = offset
        var left = length
        var index = chain.readableCount
        while left > 0, index < chain.readableCount &+ chain.writableCount {
            let size = segments[index].iov_len
            if skip < size {
                let count = min(left, size &- skip)
                addressSpace.didWrite(addresses[index] &+ UInt64(truncatingIfNeeded: skip), length: UInt64(count))
                left &-= count
                skip = 0
            } else {
                skip &-= size
            }
            index &+= 1
        }
    }
}
