import CBaton

/// What a module provides and an update calls.
public protocol ModulePart: AnyObject {
    /// As in the module's file name.
    var name: String { get }
    /// A step of this part has not come back, and was stopped where it was:
    /// nothing of it is called any more. Called on the main thread.
    func leftBehind()
}

extension ModulePart {
    public func leftBehind() {}
}

/// Calls into modules that may never come back, for the steps in which no
/// lifeboat waits for this process: while the guest runs, and after the point
/// from which there is no way back.
///
/// The calls are made in a thread, while the main thread waits and does nothing
/// else. One that is late is stopped for good, with its thread, so that it
/// cannot wake up later beside the main thread; its part is not called again.
final class BoundedCalls {
    /// What has been left behind, and why nothing can be updated since.
    private(set) var late: [(part: any ModulePart, error: VMMError)] = []

    func isLate(_ part: any ModulePart) -> Bool { late.contains { $0.part === part } }

    /// Calls `body` for each part that has not been left behind before, in order.
    /// - Parameters:
    ///   - step: the step's name, for the error of one that is late.
    ///   - limit: nanoseconds that each call may take.
    /// - Returns: for each part what `body` returned, or the error that it was late.
    func call<Answer>(
        _ parts: [any ModulePart], _ step: String, limit: Int64, _ body: @escaping (any ModulePart) -> Answer
    ) -> [(part: any ModulePart, answer: Result<Answer, VMMError>)] {
        let called = parts.filter { !isLate($0) }
        guard !called.isEmpty else { return [] }
        let round = Round(called.count) { body(called[$0]) }
        // Balanced when all calls are done; one that is left behind keeps it for ever.
        let context = Unmanaged.passRetained(round)
        var next: UInt32 = 0
        var lateNow: Set<Int> = []
        while next < called.count {
            let index = cbaton_call_bounded(
                { context, index in
                    if let context { Unmanaged<AnyRound>.fromOpaque(context).takeUnretainedValue().call(Int(index)) }
                }, context.toOpaque(), next, UInt32(called.count), limit)
            next = index + 1
            guard index < called.count else { break }
            lateNow.insert(Int(index))
            let part = called[Int(index)]
            late.append((part, BoundedCalls.error(part, step, limit)))
            part.leftBehind()
        }
        if lateNow.isEmpty { context.release() }
        return called.enumerated().map { index, part in
            guard !lateNow.contains(index), let answer = round.answers[index] else {
                return (part, .failure(BoundedCalls.error(part, step, limit)))
            }
            return (part, .success(answer))
        }
    }

    private static func error(_ part: any ModulePart, _ step: String, _ limit: Int64) -> VMMError {
        VMMError(
            "\(part.name): '\(step)' did not come back within \(limit / 1_000_000) ms",
            hint: "Nothing of this module is called any more, and this VM can no longer be updated: "
                + "shut it down and start it again when that suits.")
    }
}

/// What the thread of one round of calls works on.
private class AnyRound {
    func call(_ index: Int) {}
}

private final class Round<Answer>: AnyRound {
    var answers: [Answer?]
    private let body: (Int) -> Answer

    init(_ count: Int, _ body: @escaping (Int) -> Answer) {
        answers = Array(repeating: nil, count: count)
        self.body = body
    }

    override func call(_ index: Int) { answers[index] = body(index) }
}
