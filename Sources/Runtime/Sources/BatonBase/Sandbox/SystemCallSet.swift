import CBaton

/// System calls, by their numbers on this processor.
public struct SystemCallSet: Equatable {
    /// A bit for each number: every start makes such sets.
    private var words: [UInt64]
    /// Above all numbers that a kernel has.
    private static let limit = 1024

    /// None.
    public init() { words = [UInt64](repeating: 0, count: SystemCallSet.limit / 64) }

    /// - Parameter names: as in the kernel's tables. One that this processor does not have is left out.
    public init(_ names: String) {
        self.init()
        for name in names.split(whereSeparator: { $0 == " " || $0 == "\n" }) {
            let number = cbaton_system_call_number(String(name))
            if number >= 0 { insert(UInt32(number)) }
        }
    }

    /// - Parameter number: one that no kernel has is left out.
    public mutating func insert(_ number: UInt32) {
        if number < SystemCallSet.limit { words[Int(number) / 64] |= 1 << UInt64(number % 64) }
    }

    /// What this runtime needs (`system_calls.c`), on the main thread.
    public static var ofRuntime: SystemCallSet {
        var result = SystemCallSet()
        var next = cbaton_system_calls()
        while let call = next?.pointee, call.name.0 != 0 {
            result.insert(call.number)
            next = next?.advanced(by: 1)
        }
        return result
    }

    /// Numbers in a row, from the lowest on.
    public var ranges: [ClosedRange<UInt32>] {
        var ranges: [ClosedRange<UInt32>] = []
        for number in 0..<UInt32(SystemCallSet.limit) where contains(number) {
            if let last = ranges.last, last.upperBound + 1 == number {
                ranges[ranges.count - 1] = last.lowerBound...number
            } else {
                ranges.append(number...number)
            }
        }
        return ranges
    }

    public func union(_ other: SystemCallSet) -> SystemCallSet {
        var result = self
        for index in words.indices { result.words[index] |= other.words[index] }
        return result
    }
    public func contains(_ number: UInt32) -> Bool {
        number < SystemCallSet.limit && words[Int(number) / 64] >> UInt64(number % 64) & 1 == 1
    }

    // MARK: Roles of threads

    /// Of a thread that carries out requests to disks: it reads and writes what is open.
    public static let ofDiskWorkers = SystemCallSet(
        """
        read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 fsync fdatasync fallocate ioctl fcntl lseek
        fstat futex madvise munmap mmap mprotect brk exit rt_sigprocmask rt_sigreturn sched_yield clock_gettime
        clock_nanosleep restart_syscall set_robust_list rseq gettid
        """)

    /// What a thread that runs a guest's CPU has no use for. Files that are there can be read, as firmware is by pieces;
    /// threads can be made, as disks are.
    public static let notOfCPUs = SystemCallSet(
        """
        execve execveat fork vfork setsid setpgid kill rt_sigqueueinfo pidfd_open pidfd_send_signal
        open openat2 creat unlink unlinkat rename renameat renameat2 mkdir mkdirat rmdir chdir fchdir umask fchmod
        fsetxattr fremovexattr inotify_init1 inotify_add_watch inotify_rm_watch
        socket bind listen accept accept4 prlimit64 kcmp
        """)

    // MARK: Options

    /// What commands need that the VM executes for an update; not with `spawn=deny`.
    public static let ofSpawning = SystemCallSet("execve execveat fork vfork setsid setpgid")
    /// Those of QEMU's `resourcecontrol=`.
    public static let ofResourceControl = SystemCallSet(
        "setpriority sched_setparam sched_setscheduler sched_setaffinity sched_setattr")
    /// Those of QEMU's `elevateprivileges=`.
    public static let ofPrivileges = SystemCallSet(
        "setuid setgid setreuid setregid setresuid setresgid setgroups setfsuid setfsgid capset")
    /// Those of QEMU's `obsolete=` that Linux still has.
    public static let obsolete = SystemCallSet("sysfs _sysctl uselib ustat")
}
