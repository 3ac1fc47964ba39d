import BatonBase
import Glibc

/// What the host's kernel says of its memory.
public enum HostMemory {
    /// - Parameter name: as in /proc/meminfo (proc(5)), of a figure in kilobytes.
    /// - Returns: bytes; nil when there is no such figure.
    public static func figure(_ name: String) throws(VMMError) -> UInt64? {
        let file = try FD.open("/proc/meminfo", O_RDONLY)
        let bytes = try FD.readAll(file.raw, limit: 1 << 16, from: "/proc/meminfo")
        for line in String(decoding: bytes, as: UTF8.self).split(separator: "\n") where line.hasPrefix("\(name):") {
            let words = line.split(separator: " ")
            if words.count == 3, let kilobytes = UInt64(words[1]) { return kilobytes << 10 }
        }
        return nil
    }
}
