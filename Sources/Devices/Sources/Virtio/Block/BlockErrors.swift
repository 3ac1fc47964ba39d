import BatonRuntime
import Glibc

/// What becomes of requests to a disk that fail: `werror=` and `rerror=`.
struct BlockErrors {
    private let backend: BlockBackend
    private let onWrite: BlockErrorPolicy
    private let onRead: BlockErrorPolicy
    /// When an error of a kind was last told of, by kind; CLOCK_MONOTONIC in nanoseconds.
    private var times: [Int: Int64] = [:]
    /// How often one is told of, in nanoseconds.
    private static let interval: Int64 = 1_000_000_000

    /// - Parameters:
    ///   - onWrite, onRead: nil for what the drive says.
    init(of backend: BlockBackend, onWrite: BlockErrorPolicy?, onRead: BlockErrorPolicy?) {
        self.backend = backend
        self.onWrite = onWrite ?? backend.settings.onWriteError
        self.onRead = onRead ?? backend.settings.onReadError
    }

    /// A request has failed: tells the monitors, and stops the guest if that is what is to be done.
    /// - Returns: `report`, `ignore` or `stop`.
    mutating func action(isRead: Bool, _ code: Int32, _ vm: VirtualMachine) -> BlockErrorPolicy {
        let action = (isRead ? onRead : onWrite).action(code)
        if action == .stop {
            // The first error says why.
            if backend.ioStatus == .ok { backend.ioStatus = code == ENOSPC ? .nospace : .failed }
            vm.requestStop(.ioError)
        }
        // The guest can cause these as it likes.
        let kind = (isRead ? 1 : 0) | (action == .report ? 2 : action == .ignore ? 4 : 8) | (code == ENOSPC ? 16 : 0)
        let now = EventLoop.now
        if let last = times[kind], now - last < BlockErrors.interval { return action }
        times[kind] = now
        vm.emit(
            "BLOCK_IO_ERROR",
            [
                "device": .string(backend.id), "node-name": .string(backend.id),
                "operation": isRead ? "read" : "write", "action": .string(action.rawValue),
                "nospace": .bool(code == ENOSPC), "reason": .string(String(cString: strerror(code))),
            ])
        return action
    }
}
