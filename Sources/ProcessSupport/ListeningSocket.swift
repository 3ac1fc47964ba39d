import Foundation

/// The unix sockets of other processes.
public enum ListeningSocket {
    /// Whether a process of this network namespace listens on the socket that
    /// it bound to `path`.
    ///
    /// The socket's file says only that it is bound, and a connection is
    /// refused until its owner also listens; to connect and see would be the
    /// one connection of a server that serves one. The kernel's list says it
    /// (flag `__SO_ACCEPTCON`).
    /// - Parameter path: as its owner gave it to `bind`.
    /// - Throws: when the list cannot be read.
    public static func exists(at path: String) throws -> Bool {
        let acceptsConnections: UInt32 = 1 << 16
        // Others' names may be no text.
        return try ProcFile.text("/proc/net/unix").split(separator: "\n").contains { line in
            let fields = line.split(separator: " ", maxSplits: 7)
            guard fields.count == 8, fields[7] == path, let flags = UInt32(fields[3], radix: 16) else { return false }
            return flags & acceptsConnections != 0
        }
    }
}
