import BatonBase
import Glibc

/// Files that a process has mapped.
enum MappedFile {
    /// Those that it can run, by their names and inodes, as /proc/PID/maps has them: one may be there several times.
    /// - Parameter process: a PID, or `self`.
    static func executable(of process: String) -> [(path: String, inode: UInt64)] {
        guard let maps = try? FD.open("/proc/\(process)/maps", O_RDONLY),
            let bytes = try? FD.readAll(maps.raw, limit: 16 << 20, from: "maps")
        else { return [] }
        return String(decoding: bytes, as: UTF8.self).split(separator: "\n").compactMap { line in
            // ADDRESSES MODE OFFSET DEVICE INODE PATH
            let words = line.split(separator: " ", maxSplits: 5, omittingEmptySubsequences: true)
            guard words.count == 6, words[1].utf8.dropFirst(2).first == UInt8(ascii: "x"),
                let inode = UInt64(words[4])
            else { return nil }
            let path = String(words[5].drop { $0 == " " })
            return path.hasPrefix("/") ? (path, inode) : nil
        }
    }
}
