import BatonBase
import CBaton
import Glibc

/// QEMU's locks on disk images, so that no two VMs, nor a VM and qemu-img, change one at the same time.
///
/// Each permission that a user of the image takes is a lock on byte 100 and up, each that it does not leave to others
/// one on byte 200 and up; all are shared locks. Who would take what another denies, or deny what another has, finds
/// the other's lock and does not open the image. The locks belong to the open file description: they stay over an
/// exec, are shared with every copy of the descriptor, and go with the last.
enum ImageLock {
    /// What is done with an image. The numbers are QEMU's.
    struct Permissions: OptionSet {
        let rawValue: Int
        static let consistentRead = Permissions(rawValue: 1)
        static let write = Permissions(rawValue: 2)
        static let writeUnchanged = Permissions(rawValue: 4)
        static let resize = Permissions(rawValue: 8)
        static let all = Permissions(rawValue: 15)

        static let names = ["consistent read", "write", "write unchanged", "resize"]
    }

    private static let takenBase: off_t = 100
    private static let deniedBase: off_t = 200
    /// How long another's lock is waited for, in nanoseconds: one that holds it may be a process of an update that is
    /// about to end.
    private static let patience: Int64 = 1_000_000_000

    /// Takes the locks for a use of an image.
    /// - Parameters:
    ///   - fd: the image, borrowed.
    ///   - shared: what others may do meanwhile.
    /// - Throws: QEMU's error when another use is in the way; then no lock is held.
    static func acquire(
        _ fd: Int32, _ path: String, taking taken: Permissions, sharing shared: Permissions
    ) throws(VMMError) {
        let deadline = EventLoop.now + patience
        while true {
            guard let conflict = try attempt(fd, path, taken, Permissions.all.subtracting(shared)) else { return }
            release(fd)
            guard EventLoop.now < deadline else {
                throw VMMError(conflict, hint: "Is another process using the image [\(path)]?")
            }
            usleep(10_000)
        }
    }

    /// Changes the locks that an open file already has to those of another use, without waiting or letting go of any
    /// that stays.
    /// - Throws: QEMU's error when another use is in the way; the locks are taken all the same.
    static func change(
        _ fd: Int32, _ path: String, taking taken: Permissions, sharing shared: Permissions
    ) throws(VMMError) {
        let denied = Permissions.all.subtracting(shared)
        for (base, wanted) in [(takenBase, taken), (deniedBase, denied)] {
            for bit in bits(.all) {
                let isWanted = bits(wanted).contains(bit)
                guard cbaton_lock_range(fd, isWanted ? F_RDLCK : F_UNLCK, base + bit, 1) == 0 else {
                    throw .system("Failed to lock byte \(base + bit) of '\(path)'")
                }
            }
        }
        try check(fd, path, taking: taken, sharing: shared)
    }

    /// Looks whether the locks could be taken, and takes none.
    /// - Throws: QEMU's error when another use is in the way.
    static func check(
        _ fd: Int32, _ path: String, taking taken: Permissions, sharing shared: Permissions
    ) throws(VMMError) {
        guard let text = try conflict(fd, path, taken, Permissions.all.subtracting(shared)) else { return }
        throw VMMError(text, hint: "Is another process using the image [\(path)]?")
    }

    static func release(_ fd: Int32) {
        for base in [takenBase, deniedBase] { _ = cbaton_lock_range(fd, F_UNLCK, base, off_t(Permissions.names.count)) }
    }

    /// - Returns: what is in the way, in QEMU's words.
    private static func attempt(
        _ fd: Int32, _ path: String, _ taken: Permissions, _ denied: Permissions
    ) throws(VMMError) -> String? {
        // First ours, so that of two at the same time at least one sees the other.
        for byte in bits(taken).map({ takenBase + $0 }) + bits(denied).map({ deniedBase + $0 }) {
            guard cbaton_lock_range(fd, F_RDLCK, byte, 1) == 0 else {
                let code = errno
                release(fd)
                throw .system(
                    "Failed to lock byte \(byte) of '\(path)'", errno: code,
                    hint: "Where the file system has no locks, file.locking=off leaves them out.")
            }
        }
        return try conflict(fd, path, taken, denied)
    }

    private static func bits(_ permissions: Permissions) -> [off_t] {
        (0..<off_t(Permissions.names.count)).filter { permissions.rawValue >> $0 & 1 != 0 }
    }

    private static func conflict(
        _ fd: Int32, _ path: String, _ taken: Permissions, _ denied: Permissions
    ) throws(VMMError) -> String? {
        for bit in bits(taken) where try isLocked(fd, path, deniedBase + bit) {
            return "Failed to get \"\(Permissions.names[Int(bit)])\" lock"
        }
        for bit in bits(denied) where try isLocked(fd, path, takenBase + bit) {
            return "Failed to get shared \"\(Permissions.names[Int(bit)])\" lock"
        }
        return nil
    }

    private static func isLocked(_ fd: Int32, _ path: String, _ byte: off_t) throws(VMMError) -> Bool {
        let result = cbaton_is_range_locked(fd, byte, 1)
        guard result >= 0 else { throw .system("Failed to check the locks of '\(path)'") }
        return result != 0
    }
}

/// A lock on a whole file that one process may use.
public enum FileLock {
    private static let patience: Int64 = 2_000_000_000

    /// Takes it for an open file description, with which it stays.
    /// - Returns: false when another has it, for longer than a process of an update takes to end.
    /// - Throws: where the file system has no locks.
    public static func acquire(_ fd: Int32, name: String) throws(VMMError) -> Bool {
        let deadline = EventLoop.now + patience
        while cbaton_lock_range(fd, F_WRLCK, 0, 0) != 0 {
            guard errno == EAGAIN || errno == EACCES else { throw .system("Failed to lock \(name)") }
            guard EventLoop.now < deadline else { return false }
            usleep(10_000)
        }
        return true
    }
}
