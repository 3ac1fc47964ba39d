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

    /// A bit of a checkpoint that is wrong, and what the guest finds. The time-stamp counter's offset is not among
    /// them: a KVM that is emulated may take it and not heed it.
    private static let wrongBits: [(bit: String, finding: String)] = [
        ("cpu0 r8 0 40", "integer registers"),
        ("cpu0 xsave 167 0", "floating-point registers"),
        ("cpu0 cr2 0 3", "control registers"),
        ("cpu0 debug 3 3", "control registers"),
        ("cpu0 lapic 211 0", "interrupt controllers"),
        ("ioapic redirection 20 1", "interrupt controllers"),
        ("serial0 scr 0 0", "serial port"),
    ]

    @Test("The guest finds a wrong bit", arguments: wrongBits)
    func wrongBit(bit: String, finding: String) throws {
        let module = try BrokenModeTests.Module("flip " + bit, timeout: 4, .kvm)
        let (_, verdict) = try HarnessTests.run("guest-time", try Harness(module.configuration))
        guard case .failed(let text) = verdict else {
            Issue.record("\(bit) was not found: \(verdict)")
            return
        }
        #expect(text.contains("the guest found changed") && text.contains(finding), "\(text)")
    }
}
