import Glibc

extension VMMError {
    /// An error that ends in the system's text for an errno value, as QEMU's
    /// `error_setg_errno` makes it: `message: No such file or directory`.
    /// - Parameter code: the errno value; by default the calling thread's
    ///   current one, so call this before anything that may change it.
    public static func system(_ message: String, errno code: Int32 = errno, hint: String? = nil) -> VMMError {
        // The VMM has one thread, which alone uses the buffer of `strerror`.
        let text = strerror(code).map { String(cString: $0) } ?? "error \(code)"
        return VMMError("\(message): \(text)", hint: hint)
    }
}

/// Repeats `body` while it fails with EINTR.
/// - Parameter body: a system call that returns -1 and sets errno on failure.
/// - Returns: the first result that is not an interrupted call.
@inline(__always)
public func retryingInterrupts<T: SignedInteger>(_ body: () -> T) -> T {
    while true {
        let result = body()
        if result != -1 || errno != EINTR { return result }
    }
}
