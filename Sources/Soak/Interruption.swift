import Foundation
import Glibc
import Harness
import ProcessSupport

/// SIGINT, SIGTERM and SIGHUP: all VMs of this process end, so that whatever waits for one does not wait on.
package final class Interruption: @unchecked Sendable {
    /// Set by the handler: what the signal interrupts fails before any other thread has a turn.
    nonisolated(unsafe) private static var number: Int32 = 0
    /// How long the main thread may take to notice, in tenths of a second.
    private static let patience = 100

    /// The end of a pipe to which the handler writes: it runs in whatever thread the signal comes to.
    nonisolated(unsafe) private static var writer: Int32 = -1

    package init() {
        var ends: [Int32] = [-1, -1]
        pipe(&ends)
        for end in ends { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
        let reader = ends[0]
        Interruption.writer = ends[1]
        for number in [SIGINT, SIGTERM, SIGHUP] {
            Glibc.signal(number) { number in
                Interruption.number = number
                var byte = UInt8(truncatingIfNeeded: number)
                _ = write(Interruption.writer, &byte, 1)
            }
        }
        Thread.detachNewThread {
            var byte: UInt8 = 0
            while read(reader, &byte, 1) != 1 {}
            Self.end()
        }
    }

    /// The signal that came; nil if none did.
    package var signal: Int32? { Interruption.number == 0 ? nil : Interruption.number }

    /// - Throws: once a signal has come.
    package func check() throws {
        if let signal { throw Failure("interrupted by signal \(signal)") }
    }

    /// Until the main thread has ended the process, which may just now start a VMM.
    private static func end() {
        for _ in 0..<patience {
            for directory in TemporaryDirectory.present { Machine.endAll(of: directory) }
            poll(nil, 0, 100)
        }
        exit(1)
    }
}
