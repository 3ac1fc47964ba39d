import Harness
import Testing

/// Every row of baton-harness on the x86-64 machine, for our own modes.
@Suite("On KVM", .enabled(if: HarnessMachine.kvm.obstacle == nil, "needs a /dev/kvm that can be used"))
struct KVMHarnessTests {
    private static let restart = Result { try Harness(configuration("restart")) }
    private static let transfer = Result { try Harness(configuration("transfer")) }
    private static let reboot = Result { try Harness(configuration("reboot")) }

    private static func configuration(_ mode: String) -> HarnessConfiguration {
        HarnessTests.configuration(mode, .kvm)
    }
    private static func rows(_ mode: String) -> [String] { HarnessTests.rows(configuration(mode)) }

    @Test("The restart mode", arguments: rows("restart"))
    func restart(row: String) throws {
        try HarnessTests.expect(row, Self.restart, [.samePID, .keepsConnections, .executes, .handsOver, .saves])
    }

    @Test("The reboot mode", arguments: rows("reboot"))
    func reboot(row: String) throws { try HarnessTests.expect(row, Self.reboot, [.survivesHostReboot, .saves]) }

    @Test("The transfer mode", arguments: rows("transfer"))
    func transfer(row: String) throws {
        try HarnessTests.expect(row, Self.transfer, [.keepsConnections, .connects, .handsOver])
    }
}
