import Foundation
import HarnessSystem

/// A file system in memory that can be filled up. It needs root, who alone may mount it, and goes with this, or at the
/// latest when the process ends.
public final class SmallFileSystem {
    private let directory: TemporaryDirectory
    /// Where it is mounted.
    public let path: String

    /// - Parameter options: of the mount (tmpfs(5)).
    public init(_ options: String = "size=64k") throws {
        directory = try TemporaryDirectory()
        path = directory.file("small")
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: false)
        try ChildProcess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path])
        Self.mounted.add(path)
    }

    deinit { Self.mounted.remove(path) }

    /// The path of a file in it.
    public func file(_ name: String) -> String { "\(path)/\(name)" }

    /// Uses up all room, also what has become free since the last time.
    public func fill() throws {
        let fd = open(file("filler"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0o600)
        guard fd >= 0 else { throw Failure.system("open the filler") }
        defer { close(fd) }
        let page = [UInt8](repeating: 0xb5, count: 4096)
        while write(fd, page, page.count) > 0 {}
        guard errno == ENOSPC else { throw Failure.system("fill") }
    }

    /// Gives back what was used up.
    public func empty() { unlink(file("filler")) }

    /// Those that are there: the ones that nothing releases go at the end.
    private final class Mounted: @unchecked Sendable {
        private let lock = NSLock()
        private var paths: Set<String> = []

        init() { atexit { SmallFileSystem.mounted.removeAll() } }

        func add(_ path: String) { lock.withLock { _ = paths.insert(path) } }
        func remove(_ path: String) {
            lock.withLock { _ = paths.remove(path) }
            _ = harness_unmount(path)
        }
        func removeAll() { for path in lock.withLock({ paths }) { remove(path) } }
    }
    private static let mounted = Mounted()
}
