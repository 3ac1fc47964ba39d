import Foundation

/// A file whose reads wait, as on a disk that hangs: by the permission events of fanotify(7), which need root. The file
/// must be opened after this was made.
public final class HeldFile: @unchecked Sendable {
    private let fd: Int32
    private let lock = NSLock()
    private var isHeld = false
    /// Descriptors of the reads that wait.
    private var waiting: [Int32] = []

    private typealias Initialize = @convention(c) (UInt32, UInt32) -> Int32
    private typealias Mark = @convention(c) (Int32, UInt32, UInt64, Int32, UnsafePointer<CChar>) -> Int32

    /// Whether there are such events here.
    public static let isAvailable: Bool = {
        guard let directory = try? TemporaryDirectory(), let file = try? directory.write("f", "") else { return false }
        return (try? HeldFile(file)) != nil
    }()

    public init(_ path: String) throws {
        guard let initialize = dlsym(nil, "fanotify_init"), let mark = dlsym(nil, "fanotify_mark") else {
            throw Failure("no fanotify")
        }
        // FAN_CLASS_CONTENT, FAN_CLOEXEC; FAN_MARK_ADD, FAN_ACCESS_PERM, AT_FDCWD.
        let made = unsafeBitCast(initialize, to: Initialize.self)(4 | 1, UInt32(O_RDONLY))
        guard made >= 0 else { throw Failure.system("fanotify_init") }
        guard unsafeBitCast(mark, to: Mark.self)(made, 1, 0x2_0000, -100, path) == 0 else {
            close(made)
            throw Failure.system("fanotify_mark")
        }
        fd = made
        Thread { [weak self, made] in
            var buffer = [UInt8](repeating: 0, count: 4096)
            while true {
                let count = read(made, &buffer, buffer.count)
                guard count > 0, let self else { return }
                // Length, version, metadata, mask, descriptor, PID.
                take(
                    stride(from: 0, to: count, by: 24).map { place in
                        buffer.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: place + 16, as: Int32.self) }
                    })
            }
        }.start()
    }

    private func take(_ fds: [Int32]) {
        lock.lock()
        defer { lock.unlock() }
        waiting += fds
        if !isHeld { allow() }
    }

    deinit { close(fd) }

    private func allow() {
        for waiter in waiting {
            var answer = (waiter, UInt32(1))
            _ = write(fd, &answer, 8)
            close(waiter)
        }
        waiting = []
    }

    /// How many reads wait.
    public var count: Int { lock.withLock { waiting.count } }

    /// Has reads wait from now on.
    public func hold() { lock.withLock { isHeld = true } }

    /// Lets them go on.
    public func release() {
        lock.withLock {
            isHeld = false
            allow()
        }
    }
}
