import Foundation

/// A file that another process has mapped too, such as a guest's RAM: seen
/// from outside, while it changes.
public final class SharedMemory {
    public let size: Int
    private let base: UnsafeMutableRawPointer

    /// Maps the whole file, which must exist.
    public init(path: String, writable: Bool = false) throws {
        let fd = open(path, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC)
        guard fd >= 0 else { throw Failure.system("open \(path)") }
        defer { close(fd) }
        let end = lseek(fd, 0, SEEK_END)
        guard end > 0 else { throw Failure("\(path) is empty") }
        size = Int(end)
        let protection = writable ? PROT_READ | PROT_WRITE : PROT_READ
        guard let mapping = mmap(nil, size, protection, MAP_SHARED, fd, 0), mapping != MAP_FAILED else {
            throw Failure.system("mmap \(path)")
        }
        base = mapping
    }

    deinit { munmap(base, size) }

    /// A value at an offset from the start of the file, aligned to its size.
    @inline(never)
    public func load<T: BitwiseCopyable>(_ type: T.Type = T.self, at offset: Int) -> T {
        precondition(offset >= 0 && offset + MemoryLayout<T>.size <= size)
        return base.load(fromByteOffset: offset, as: T.self)
    }
    @inline(never)
    public func store<T: BitwiseCopyable>(_ value: T, at offset: Int) {
        precondition(offset >= 0 && offset + MemoryLayout<T>.size <= size)
        base.storeBytes(of: value, toByteOffset: offset, as: T.self)
    }

    /// The SHA-256 of a file, by the system's `sha256sum`: a program outside
    /// everything under test.
    public static func sha256(ofFile path: String) throws -> String {
        let output = try ChildProcess.run(["sha256sum", path])
        return String(output.prefix { $0 != " " })
    }
}
