import Glibc

extension VMMError {
    /// An error that ends in the system's text for an errno value, as QEMU's
    /// `error_setg_errno` makes it: `message: No such file or directory`.
    /// - Parameter code: the errno value; by default the calling thread's
    ///   current one, so call this before anything that may change it.
    public static func system(_ message: String, errno code: Int32 = errno, hint: String? = nil) -> VMMError {
        // The VMM has one thread, which alone uses the buffer of `strerror`.
        var text = strerror(code).map { String(cString: $0) } ?? "error \(code)"
        if code == EACCES || code == EPERM, let reason = HostAccess.takeRefusal() { text += " (\(reason))" }
        return VMMError("\(message): \(text)", hint: hint)
    }
}

/// Whether a read or write that failed so may do its work when it is repeated: nothing was there yet, or the kernel had
/// no memory for it. The connection is as good as before, and who closes it loses what is in it.
/// - Parameter code: the errno value; by default the calling thread's current one.
/// - Source: recv(2), send(2), unix(7): EAGAIN, ENOMEM, ENOBUFS.
public func isTransientFailure(_ code: Int32 = errno) -> Bool {
    code == EAGAIN || code == EWOULDBLOCK || code == ENOMEM || code == ENOBUFS
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
