import CBaton
import Glibc

extension EventLoop {
    /// Nanoseconds until a listener is looked at again for which there was no descriptor or no memory.
    private static let acceptPause: Int64 = 100_000_000

    /// Takes the next connection of a watched listener, in its handler.
    ///
    /// Without a descriptor to be had (accept(2): EMFILE, ENFILE, ENOBUFS, ENOMEM) the client stays in the queue, and the
    /// listener ready: it is left alone for a tenth of a second then, in which the guest runs.
    /// - Parameters:
    ///   - listener: borrowed.
    ///   - name: what it is, for a warning.
    /// - Returns: a non-blocking socket, owned by the caller; nil when there is none now.
    public func accept(_ listener: Int32, for name: String) -> Int32? {
        let fd = retryingInterrupts { cbaton_accept(listener) }
        guard fd < 0 else { return fd }
        // The client may have gone again by now.
        guard errno != EAGAIN, errno != ECONNABORTED else { return nil }
        Report.warning(VMMError.system("\(name): cannot accept a connection, which waits").message)
        rest(listener, for: EventLoop.acceptPause)
        return nil
    }
}
