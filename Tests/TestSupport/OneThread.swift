import Foundation
import Testing

/// For tests, in their own process, of what the VMM has only once because it is of one thread: the loader's state, the
/// buffers of network back ends. Of all tests with this trait, of whichever suite, one runs at a time.
public struct OneThread: SuiteTrait, TestTrait, TestScoping {
    public var isRecursive: Bool { true }

    public func scopeProvider(for test: Test, testCase: Test.Case?) -> Self? { testCase == nil ? nil : self }

    public func provideScope(
        for test: Test, testCase: Test.Case?, performing function: @Sendable () async throws -> Void
    ) async throws {
        await Self.turn.take()
        defer { Self.turn.pass() }
        try await function()
    }

    private static let turn = Turn()

    /// A lock that keeps no thread waiting: there are as few as processors.
    private final class Turn: @unchecked Sendable {
        private let lock = NSLock()
        private var isTaken = false
        private var waiting: [CheckedContinuation<Void, Never>] = []

        func take() async {
            await withCheckedContinuation { continuation in
                let isMine = lock.withLock {
                    if isTaken { waiting.append(continuation) }
                    defer { isTaken = true }
                    return !isTaken
                }
                if isMine { continuation.resume() }
            }
        }

        func pass() {
            let next = lock.withLock { () -> CheckedContinuation<Void, Never>? in
                guard waiting.isEmpty else { return waiting.removeFirst() }
                isTaken = false
                return nil
            }
            next?.resume()
        }
    }
}

extension Trait where Self == OneThread {
    public static var oneThread: Self { Self() }
}
