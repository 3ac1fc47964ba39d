import BatonBase
import Glibc

/// The limits on this process' memory (getrlimit(2)), which somebody may have lowered since its start.
enum MemoryLimits {
    /// Bytes that an update or a trial takes for a while.
    private static let need: UInt64 = 64 << 20

    /// Without room a small allocation fails, and that would be the end of the VM.
    /// - Throws: which limit is too low for an update.
    static func check() throws(VMMError) {
        // proc_pid_statm(5): pages of the address space, and of data and stack.
        try check(__rlimit_resource_t(RLIMIT_AS.rawValue), "the address space (RLIMIT_AS)", field: 0)
        try check(__rlimit_resource_t(RLIMIT_DATA.rawValue), "data (RLIMIT_DATA)", field: 5)
    }

    private static func check(
        _ resource: __rlimit_resource_t, _ name: String, field: Int
    ) throws(VMMError) {
        var limit = rlimit()
        guard getrlimit(resource, &limit) == 0, limit.rlim_cur != rlim_t.max else { return }
        guard let pages = size(field) else { return }
        let used = pages * UInt64(sysconf(Int32(_SC_PAGESIZE)))
        guard limit.rlim_cur < used + need else { return }
        throw VMMError(
            "the limit on \(name) is \(limit.rlim_cur >> 20) MiB, of which this VMM has \(used >> 20) MiB: an update needs "
                + "\(need >> 20) MiB more",
            hint: "Raise it, with prlimit(1).")
    }

    /// A field of /proc/self/statm. Takes hardly any memory, of which there may be none.
    private static func size(_ field: Int) -> UInt64? {
        let fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC)
        guard fd >= 0 else { return nil }
        defer { close(fd) }
        return withUnsafeTemporaryAllocation(byteCount: 256, alignment: 1) { buffer in
            let count = read(fd, buffer.baseAddress, buffer.count)
            guard count > 0 else { return nil }
            let fields = buffer[..<count].split(whereSeparator: { $0 == UInt8(ascii: " ") || $0 == UInt8(ascii: "\n") })
            guard fields.count > field else { return nil }
            return fields[field].reduce(0) { $0 * 10 + UInt64($1 - UInt8(ascii: "0")) }
        }
    }
}
