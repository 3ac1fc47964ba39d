import Glibc

/// This boot of the host.
public enum HostBoot {
    /// Tells it from others: CLOCK_MONOTONIC and the processors' counters mean nothing in another. Empty where that
    /// cannot be known (without /proc): then no two boots are the same.
    public static let id: String = {
        guard let fd = try? FD.open("/proc/sys/kernel/random/boot_id", O_RDONLY),
            let bytes = try? FD.readAll(fd.raw, limit: 64, from: "boot_id")
        else { return "" }
        return String(decoding: bytes.prefix { $0 != 10 }, as: UTF8.self)
    }()
}
