import Foundation
import ProcessSupport

/// The page that the counter guest keeps at 0x80400000, in a file that is its RAM.
final class CounterPage {
    let path: String
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
        get { Double(words.load(fromByteOffset: 0x38, as: UInt64.self)) / 10_000 }
        set { words.storeBytes(of: UInt64(newValue * 10_000), toByteOffset: 0x38, as: UInt64.self) }
    }

    /// How often the guest has used all that it is to use; nil when that is nothing.
    var rounds: UInt64? {
        words.load(fromByteOffset: 0x20, as: UInt64.self) == 0 ? nil : words.load(fromByteOffset: 0x28, as: UInt64.self)
    }
}
