import Foundation

/// Why a check or a helper of one gave up, in words for its report.
public struct Failure: Error, CustomStringConvertible {
    public let description: String
    public init(_ description: String) { self.description = description }

    /// With what the system said: the text of `errno`.
    public static func system(_ what: String) -> Failure { Failure("\(what): \(String(cString: strerror(errno)))") }
}

/// A point in time that nothing may outlast. Whoever waits always has one.
public struct Deadline: Sendable {
    private let instant: ContinuousClock.Instant
    /// For what is due at once: it ends a test that would wait for ever, on a machine however slow and busy.
    public static var patient: Deadline { .seconds(patience) }
    public static let patience = 150.0
    public static func seconds(_ seconds: Double) -> Deadline {
        Deadline(instant: .now + .milliseconds(Int64(seconds * 1000)))
    }
    /// Milliseconds left, rounded up; 0 when it has passed.
    public var milliseconds: Int32 {
        let left = ContinuousClock.now.duration(to: instant).components
        guard left.seconds >= 0, left.attoseconds >= 0 else { return 0 }
        return Int32(clamping: left.seconds * 1000 + left.attoseconds / 1_000_000_000_000_000 + 1)
    }
    public var hasPassed: Bool { ContinuousClock.now >= instant }
}

/// Waits for something that cannot be waited for by the system, such as a
/// guest's store to shared memory, by looking again and again.
/// - Parameter what: is asked for when it has not come: it may say how things stand then.
/// - Throws: an error that names `what` when the deadline passes.
public func eventually(
    _ what: @autoclosure () -> String, by deadline: Deadline = .patient, _ condition: () throws -> Bool
) throws {
    while try !condition() {
        guard !deadline.hasPassed else { throw Failure("gave up waiting for: \(what())") }
        poll(nil, 0, 1)
    }
}
