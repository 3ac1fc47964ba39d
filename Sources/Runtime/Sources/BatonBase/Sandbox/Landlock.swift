import CBaton
import Glibc

/// A Landlock domain to be: what files, directories and ports a process and all that it executes can use.
///
/// - Source: landlock(7), Linux' `include/uapi/linux/landlock.h`.
public final class Landlock {
    /// Rights to files, in the kernel's bits.
    public struct Rights: OptionSet {
        public let rawValue: UInt64
        public init(rawValue: UInt64) { self.rawValue = rawValue }
        public static let execute = Rights(rawValue: 1 << 0)
        public static let write = Rights(rawValue: 1 << 1)
        public static let read = Rights(rawValue: 1 << 2)
        public static let list = Rights(rawValue: 1 << 3)
        public static let removeDirectory = Rights(rawValue: 1 << 4)
        public static let removeFile = Rights(rawValue: 1 << 5)
        public static let makeDirectory = Rights(rawValue: 1 << 7)
        public static let makeFile = Rights(rawValue: 1 << 8)
        public static let makeSocket = Rights(rawValue: 1 << 9)
        public static let makeFIFO = Rights(rawValue: 1 << 10)
        public static let refer = Rights(rawValue: 1 << 13)
        public static let truncate = Rights(rawValue: 1 << 14)
        public static let deviceControl = Rights(rawValue: 1 << 15)
        /// What a file that is no directory can have.
        static let ofFiles: Rights = [.execute, .write, .read, .truncate, .deviceControl]

        /// All of a directory's, but to execute, and to make links and devices.
        public static let everything: Rights = [
            .write, .read, .list, .removeDirectory, .removeFile, .makeDirectory, .makeFile, .makeSocket, .makeFIFO,
            .refer, .truncate, .deviceControl,
        ]
    }

    /// The kernel's version of Landlock; 0 when it has none.
    public static var version: Int { max(0, Int(cbaton_landlock_version())) }
    /// The first that keeps signals, and abstract unix sockets, within the domain.
    public static let versionOfScopes = 6

    private let ruleset: OwnedFD
    private let handled: Rights
    private let keepsPorts: Bool
    /// Why something that is there is not allowed: who enters the domain would lack it later.
    public private(set) var failure: VMMError?

    /// Everything that this kernel can refuse is refused, but for what is allowed hereafter.
    public init() throws(VMMError) {
        let version = Landlock.version
        guard version > 0 else { throw .system("this kernel has no Landlock") }
        var bits: UInt64 = (1 << 13) - 1
        if version >= 2 { bits |= Rights.refer.rawValue }
        if version >= 3 { bits |= Rights.truncate.rawValue }
        if version >= 5 { bits |= Rights.deviceControl.rawValue }
        handled = Rights(rawValue: bits)
        keepsPorts = version >= 4
        let raw = cbaton_landlock_make(bits, keepsPorts ? 3 : 0, version >= Landlock.versionOfScopes ? 3 : 0)
        guard raw >= 0 else { throw .system("cannot make a Landlock ruleset") }
        ruleset = OwnedFD(adopting: raw)
    }

    /// Allows a file, or a directory with all below it.
    /// - Parameters:
    ///   - fd: an open file, or one that is open for its path only. Borrowed.
    ///   - rights: those that a file can have are allowed also for what is no directory.
    public func allow(_ fd: Int32, _ rights: Rights) {
        let possible = handled.intersection(rights)
        guard !possible.isEmpty, cbaton_landlock_allow(ruleset.raw, fd, possible.rawValue) != 0 else { return }
        guard errno == EINVAL else { return noteFailure() }
        let ofFile = possible.intersection(.ofFiles)
        if !ofFile.isEmpty, cbaton_landlock_allow(ruleset.raw, fd, ofFile.rawValue) != 0 { noteFailure() }
    }

    private func noteFailure() {
        // What has no place in a file system (a pipe, a memfd) needs no rule, and can have none.
        guard errno != EBADFD else { return }
        failure = failure ?? .system("cannot add to a Landlock ruleset")
    }

    /// The same, by a path; nothing when there is nothing.
    public func allow(path: String, _ rights: Rights) {
        let fd = open(path, O_PATH_ONLY | O_CLOEXEC)
        guard fd >= 0 else {
            if ![ENOENT, ENOTDIR, EACCES, ELOOP, ENAMETOOLONG].contains(errno) { noteFailure() }
            return
        }
        allow(fd, rights)
        close(fd)
    }

    /// Allows to bind a TCP port.
    public func allow(port: UInt16) {
        if keepsPorts, cbaton_landlock_allow_port(ruleset.raw, port, 1) != 0 { noteFailure() }
    }

    /// Puts the calling thread into it. no_new_privs must be set, or the thread have CAP_SYS_ADMIN.
    public func enter() throws(VMMError) {
        guard cbaton_landlock_enter(ruleset.raw) == 0 else { throw .system("cannot enter a Landlock domain") }
    }
}

/// O_PATH, which Glibc's module lacks.
public let O_PATH_ONLY: Int32 = 0o10000000
