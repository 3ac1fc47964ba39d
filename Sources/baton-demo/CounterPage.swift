import Foundation
import ProcessSupport

/// The page that counting guests keep at 4 MiB of their RAM, in a file that is that RAM.
final class CounterPage {
    let path: String
    /// Of the counter by which the guest measures its gaps: the time counter of riscv64, unless `calibrate` has found
    /// out.
    private(set) var ticksPerMillisecond = 10_000.0
    private let words: UnsafeMutableRawPointer

    /// Makes the file, of so many bytes, none of them there yet.
    /// - Parameter used: bytes of RAM from 8 MiB on that the guest uses all the time.
    init(path: String, size: Int = 64 << 20, used: Int = 0) throws {
        self.path = path
        unlink(path)
        let fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
        guard fd >= 0, ftruncate(fd, off_t(size)) == 0,
            let map = mmap(nil, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 4 << 20), map != MAP_FAILED
        else { throw Failure.system("cannot make \(path)") }
        close(fd)
        words = map
        words.storeBytes(of: UInt64(used), toByteOffset: 0x20, as: UInt64.self)
    }

    deinit {
        munmap(words, 4096)
        unlink(path)
    }

    /// The guest's counter; it writes while we read.
    @inline(never)
    var count: UInt64 { words.load(fromByteOffset: 8, as: UInt64.self) }

    /// Whether the guest measures its own gaps.
    var measuresGaps: Bool {
        get { words.load(fromByteOffset: 0x30, as: UInt64.self) != 0 }
        set { words.storeBytes(of: newValue ? 1 : 0, toByteOffset: 0x30, as: UInt64.self) }
    }

    /// The longest time between two counts that the guest has seen by its time counter, in ms. May be set to 0.
    var longestGap: Double {
        get { Double(words.load(fromByteOffset: 0x38, as: UInt64.self)) / ticksPerMillisecond }
        set { words.storeBytes(of: UInt64(newValue * ticksPerMillisecond), toByteOffset: 0x38, as: UInt64.self) }
    }

    /// How often the guest has used all that it is to use; nil when that is nothing.
    var rounds: UInt64? {
        words.load(fromByteOffset: 0x20, as: UInt64.self) == 0 ? nil : words.load(fromByteOffset: 0x28, as: UInt64.self)
    }

    // MARK: Of x86-64 guests

    /// The time-stamp counter in the last step.
    @inline(never)
    var timeStamp: UInt64 { words.load(fromByteOffset: 0x40, as: UInt64.self) }

    /// Whether the guest has executed an instruction.
    @inline(never)
    var isEntered: Bool { words.load(fromByteOffset: 0x48, as: UInt64.self) != 0 }

    /// A time of this process and of the guest's counter, as near to each other as 5 ms of looking find: both looks
    /// between which the guest stored it were the least apart.
    func simultaneous() -> (time: Double, ticks: UInt64) {
        let end = Clock.now + 0.005
        var best = (time: Clock.now, ticks: timeStamp), least = Double.infinity
        var seen = best
        while seen.time < end {
            let look = (time: Clock.now, ticks: timeStamp)
            if look.ticks != seen.ticks, look.time - seen.time < least {
                (best, least) = (look, look.time - seen.time)
            }
            seen = look
        }
        return best
    }

    /// Finds out how fast the guest's time-stamp counter counts, which runs for some time already.
    func calibrate() {
        let begin = simultaneous()
        usleep(500_000)
        let end = simultaneous()
        ticksPerMillisecond = Double(end.ticks &- begin.ticks) / ((end.time - begin.time) * 1000)
    }

    /// Starts reads of a device by the guest.
    /// - Parameter place: a port, or an address above all ports.
    func startReads(_ count: Int, of place: UInt64) {
        words.storeBytes(of: place, toByteOffset: 0x58, as: UInt64.self)
        words.storeBytes(of: UInt64(count), toByteOffset: 0x50, as: UInt64.self)
    }

    /// What the reads took, in ns, and what the last one gave; nil as long as they are not made.
    var reads: (nanoseconds: Double, value: UInt64)? {
        guard words.load(fromByteOffset: 0x50, as: UInt64.self) == 0 else { return nil }
        let ticks = words.load(fromByteOffset: 0x60, as: UInt64.self)
        return (Double(ticks) / ticksPerMillisecond * 1e6, words.load(fromByteOffset: 0x68, as: UInt64.self))
    }
}
