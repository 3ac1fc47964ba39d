import BatonBase
import CBaton
import Glibc

/// What a module provides and an update calls.
public protocol ModulePart: AnyObject {
    /// As in the module's file name.
    var name: String { get }
    /// Whether each step is done soon, whatever happens: all that it may wait
    /// for has a time limit of its own. It is not watched then, which saves some
    /// 0.03 ms a step, and a crash of it is the VMM's. Constant.
    var neverHangs: Bool { get }
    /// A step of this part has not come back, or has crashed, and was stopped
    /// where it was: nothing of it is called any more. Called on the main thread.
    func leftBehind()
}

extension ModulePart {
    public var neverHangs: Bool { false }
    public func leftBehind() {}
}

/// Calls into modules that may never come back, in the steps of an update: this
/// process has the guest, or may get it, and must go on.
///
/// What may hang is called in a thread, while the main thread waits and does
/// nothing else. A call that is late, or crashes, is stopped for good, with its
/// thread, so that it cannot wake up later beside the main thread; its part is not
/// called again.
final class BoundedCalls {
    /// What has been left behind, and why nothing can be updated since.
    private(set) var late: [(part: any ModulePart, error: VMMError)] = []

    /// Nanoseconds that a call may take at least in a VMM that has the guest, as being late has no end there.
    static let leastLimit: Int64 = 500_000_000

    func isLate(_ part: any ModulePart) -> Bool { late.contains { $0.part === part } }

    /// Calls `body` for each part that has not been left behind before, in order.
    /// - Parameters:
    ///   - step: the step's name, for the error of one that is late.
    ///   - limit: nanoseconds that each call may take.
    ///   - body: gets the index of the part.
    /// - Returns: for each that was called what `body` returned, or the error that it was late or crashed.
    func call<Answer>(
        _ parts: [any ModulePart], _ step: String, limit: Int64, _ body: @escaping (Int) -> Answer
    ) -> [Result<Answer, VMMError>] {
        var answers: [Result<Answer, VMMError>] = []
        var rest = parts.indices.filter { !isLate(parts[$0]) }[...]
        while let index = rest.first {
            if parts[index].neverHangs {
                answers.append(.success(body(index)))
                rest = rest.dropFirst()
            } else {
                let watched = rest.prefix { !parts[$0].neverHangs }
                answers += callInThread(watched.map { (index: $0, part: parts[$0]) }, step, limit: limit, body)
                rest = rest.dropFirst(watched.count)
            }
        }
        return answers
    }

    private func callInThread<Answer>(
        _ called: [(index: Int, part: any ModulePart)], _ step: String, limit: Int64,
        _ body: @escaping (Int) -> Answer
    ) -> [Result<Answer, VMMError>] {
        var answers = [Answer?](repeating: nil, count: called.count)
        let round = Round { answers[$0] = body(called[$0].index) }
        // Balanced when all calls are done; one that is left behind keeps it for ever.
        let context = Unmanaged.passRetained(round)
        var errors: [Int: VMMError] = [:]
        var next: UInt32 = 0
        var signal: Int32 = 0
        while next < called.count {
            let late = cbaton_call_bounded(
                { context, index in
                    if let context { Unmanaged<Round>.fromOpaque(context).takeUnretainedValue().call(Int(index)) }
                }, context.toOpaque(), next, UInt32(called.count), limit, &signal)
            next = late + 1
            guard late < called.count else { break }
            let part = called[Int(late)].part
            let error = BoundedCalls.error(part, step, limit, signal)
            errors[Int(late)] = error
            self.late.append((part, error))
            part.leftBehind()
        }
        if errors.isEmpty { context.release() }
        return called.indices.compactMap { index in
            if let error = errors[index] { return .failure(error) }
            return answers[index].map { .success($0) }
        }
    }

    private static func error(_ part: any ModulePart, _ step: String, _ limit: Int64, _ signal: Int32) -> VMMError {
        VMMError(
            signal == 0
                ? "\(part.name): '\(step)' did not come back within \(limit / 1_000_000) ms"
                : "\(part.name): '\(step)' crashed by signal \(signal) (\(String(cString: strsignal(signal))))",
            hint: "Nothing of this module is called any more, and this VM can no longer be updated: "
                + "shut it down and start it again when that suits.")
    }
}

/// What the thread of one round of calls does.
private final class Round {
    let call: (Int) -> Void
    init(_ call: @escaping (Int) -> Void) { self.call = call }
}
