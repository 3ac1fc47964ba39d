import BatonRuntime

/// Messages of a device's own, for which the driver keeps buffers in a queue.
extension VirtioDevice {
    /// Puts a message into the queue's next buffer. The caller signals.
    /// - Parameters:
    ///   - least: bytes that a buffer must have, which gets the message's beginning then; nil for all of it.
    ///   - kind: what the buffers are for, as in `events`.
    /// - Returns: false when there is no buffer, of which the driver notifies then, or it is too small: the device has
    ///   failed.
    func send(_ message: [UInt8], least: Int? = nil, kind: String, by queue: VirtQueue) -> Bool {
        guard let chain = queue.nextOrNotification() else { return false }
        guard chain.writableBytes >= least ?? message.count else {
            fail("buffer of \(chain.writableBytes) bytes for \(kind)")
            return false
        }
        let count = message.withUnsafeBytes { queue.copyIn(chain, offset: 0, from: $0) }
        queue.consume()
        queue.push(chain, written: count)
        return true
    }
}
