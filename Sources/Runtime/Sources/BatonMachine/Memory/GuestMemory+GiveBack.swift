import BatonBase
import Glibc

extension GuestMemory {
    /// Bytes that are given back at once: less than a millisecond's work.
    private static let pieceOfGiveBack = 16 << 20
    /// Nanoseconds after which there are no more pauses.
    private static let giveBackLimit: Int64 = 3_000_000_000

    /// Lets go of the translations of guest RAM that others keep, in pieces, and rests nineteen twentieths of the time.
    ///
    /// A process that ends does that at once, which takes some 70 ms for a GiB in use: of a processor that the guest may
    /// need, or of the time that a control group (`cpu.max`, cgroups(7)) gives to the guest and to this process together.
    /// The memory stays as it is. For a process that has nothing else to do.
    package func giveBackSlowly() {
        let start = EventLoop.now
        for block in blocks where block.shared {
            for offset in stride(from: 0, to: block.usedLength, by: GuestMemory.pieceOfGiveBack) {
                let begin = EventLoop.now
                guard begin - start < GuestMemory.giveBackLimit else { return }
                let length = min(GuestMemory.pieceOfGiveBack, block.usedLength - offset)
                guard madvise(block.host + offset, length, Int32(MADV_DONTNEED)) == 0 else { break }
                let rest = (EventLoop.now - begin) * 19
                // Where nothing was in use there is nothing to rest from.
                guard rest > 500_000 else { continue }
                var time = timespec(tv_sec: Int(rest / 1_000_000_000), tv_nsec: Int(rest % 1_000_000_000))
                nanosleep(&time, nil)
            }
        }
    }
}
