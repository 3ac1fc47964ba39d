import Foundation

/// A directory of its owner's own, removed with everything in it when this goes,
/// or at the latest when the process ends.
public final class TemporaryDirectory: Sendable {
    /// Short enough that sockets in it have a path that fits.
    public let path: String

    /// Where those of tests are: what a sandbox needs for files that come later.
    public static let parent = "/tmp"

    /// One of the tests' or the harness'.
    public init() throws { path = try Self.make("\(Self.parent)/baton-test") }

    /// - Parameter prefix: the beginning of the path.
    public init(prefix: String) throws { path = try Self.make(prefix) }

    private static func make(_ prefix: String) throws -> String {
        var template = Array("\(prefix).XXXXXX".utf8CString)
        guard mkdtemp(&template) != nil else { throw Failure.system("mkdtemp \(prefix).XXXXXX") }
        let path = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
        leftovers.add(path)
        return path
    }

    deinit {
        // A process that ends just now may still make or remove a file in it.
        do { try FileManager.default.removeItem(atPath: path) } catch { return }
        Self.leftovers.remove(path)
    }

    /// The directories that are there: those that nothing releases, as what is
    /// static, go at the end.
    private final class Leftovers: @unchecked Sendable {
        private let lock = NSLock()
        private var paths: Set<String> = []

        init() { atexit { TemporaryDirectory.leftovers.removeAll() } }

        func add(_ path: String) { lock.withLock { _ = paths.insert(path) } }
        var all: Set<String> { lock.withLock { paths } }
        func remove(_ path: String) { lock.withLock { _ = paths.remove(path) } }
        func removeAll() {
            for path in lock.withLock({ paths }) { try? FileManager.default.removeItem(atPath: path) }
        }
    }
    private static let leftovers = Leftovers()

    /// The paths of those that are there.
    public static var present: Set<String> { leftovers.all }

    /// The path of a file in the directory.
    public func file(_ name: String) -> String { "\(path)/\(name)" }

    /// Makes a file and returns its path.
    @discardableResult
    public func write(_ name: String, _ contents: Data) throws -> String {
        try contents.write(to: URL(fileURLWithPath: file(name)))
        return file(name)
    }
    @discardableResult
    public func write(_ name: String, _ contents: String) throws -> String { try write(name, Data(contents.utf8)) }

    /// Makes a file of zeroes without using space for them.
    @discardableResult
    public func writeSparse(_ name: String, size: Int) throws -> String {
        let fd = open(file(name), O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
        guard fd >= 0 else { throw Failure.system("open \(file(name))") }
        defer { close(fd) }
        guard ftruncate(fd, off_t(size)) == 0 else { throw Failure.system("ftruncate \(file(name))") }
        return file(name)
    }
}
