import Foundation
import TestSupport
import Testing

/// What the host tells of a device: that it is broken (VFIO_PCI_ERR_IRQ_INDEX),
/// and that it wants it back (VFIO_PCI_REQ_IRQ_INDEX).
@Suite("vfio-pci's errors and requests", .enabled(if: GuestBuilder.isAvailable, "needs the toolchain's clang and lld"))
struct VFIONoticeTests {
    /// The interrupts' indices.
    private static let (error, request) = (3, 4)

    /// Has the simulator tell it, and waits until it has.
    private func notice(_ index: Int, _ guest: VFIOGuest, reaches: Bool = true) throws {
        let line = "notice index=\(index) \(reaches ? "told" : "untold")"
        let before = guest.requests(line).count
        guest.process.signal(index == Self.error ? SIGUSR1 : SIGUSR2)
        try eventually(line) { guest.requests(line).count > before }
    }

    /// The device is broken: the VMM says so, and the guest stands.
    private func expectError(_ guest: VFIOGuest) throws {
        let text =
            "vfio \(VFIOGuest.device): Unrecoverable error detected. "
            + "Please collect any data possible and then kill the guest"
        try guest.process.waitForErrors(text)
        try eventually("the guest stops") { try guest.qmp.status() == "internal-error" }
        #expect(guest.process.errors.components(separatedBy: text).count == 2)
    }

    private func sets(_ guest: VFIOGuest, _ index: Int) -> [String] { guest.requests("set_irqs index=\(index) ") }

    @Test("an error stops the guest until it is reset", arguments: VFIOGuest.Interface.allCases)
    func stops(_ interface: VFIOGuest.Interface) throws {
        let guest = try VFIOGuest(devices: interface.devices)
        try guest.waitForProgress()
        #expect(sets(guest, Self.error) == ["set_irqs index=3 count=1"])
        guest.qmp.discardEvents()
        try notice(Self.error, guest)
        try guest.qmp.waitForEvent("STOP")
        try expectError(guest)
        let refusal = #expect(throws: QMPClient.Refusal.self) { try guest.qmp.execute("cont") }
        #expect(refusal?.text == "Resetting the Virtual Machine is required")
        try guest.qmp.execute("system_reset")
        try guest.qmp.waitForEvent("RESET")
        try guest.qmp.execute("cont")
        try guest.waitForReset()
        #expect(sets(guest, Self.error).count == 1 && guest.requests("refused") == [])
        try guest.end()
    }

    @Test("the host's wish to have the device back is a warning", arguments: VFIOGuest.Interface.allCases)
    func asks(_ interface: VFIOGuest.Interface) throws {
        let guest = try VFIOGuest(devices: interface.devices)
        try guest.waitForProgress()
        #expect(sets(guest, Self.request) == ["set_irqs index=4 count=1"])
        let text =
            "warning: vfio \(VFIOGuest.device): the host wants the device back: "
            + "Bus 'pcie.0' does not support hotplugging"
        for round in 1...2 {
            try notice(Self.request, guest)
            try eventually("warning \(round)") { guest.process.errors.components(separatedBy: text).count == round + 1 }
        }
        try guest.waitForProgress()
        #expect(try guest.qmp.status() == "running")
        try guest.end()
    }

    @Test(
        "what the device lacks, or nobody wants, is not set up",
        arguments: [
            (lack: "express", option: "", index: error), (lack: "request", option: "", index: request),
            (lack: nil, option: ",x-req=off", index: request),
        ])
    func absent(_ lack: String?, _ option: String, _ index: Int) throws {
        let directory = try TemporaryDirectory()
        let devices = ["-device", "vfio-pci,sysfsdev=\(try VFIOGuest.makeSysfs(directory))\(option)"]
        let guest = try VFIOGuest(options: lack.map { ["--lack", $0] } ?? [], devices: devices)
        try guest.waitForProgress()
        #expect(sets(guest, index) == [] && sets(guest, Self.error + Self.request - index).count == 1)
        try notice(index, guest, reaches: false)
        try guest.update()
        try guest.waitForProgress()
        #expect(sets(guest, index) == [] && guest.requests("refused") == [])
        try guest.end()
    }

    @Test("an interrupt that the kernel does not give is a warning", arguments: [error, request])
    func refused(_ index: Int) throws {
        let guest = try VFIOGuest(options: ["--refuse", "set_irqs=28:\(index - 2)"])
        let name = index == Self.error ? "error" : "request"
        try guest.process.waitForErrors(
            "vfio \(VFIOGuest.device): failed to set up the \(name) interrupt: No space left on device")
        try guest.waitForProgress()
        try guest.end()
    }

    // MARK: Over an update

    @Test("both are told to the VMM of the day, and set up once", arguments: VFIOGuest.Interface.allCases)
    func updates(_ interface: VFIOGuest.Interface) throws {
        let guest = try VFIOGuest(devices: interface.devices)
        try guest.waitForProgress()
        for round in 1...3 {
            try guest.update()
            try guest.waitForProgress()
            try notice(Self.request, guest)
            try eventually("warning \(round)") {
                guest.process.errors.components(separatedBy: "wants the device back").count == round + 1
            }
        }
        #expect(sets(guest, Self.error).count == 1 && sets(guest, Self.request).count == 1)
        try notice(Self.error, guest)
        try expectError(guest)
        // The state goes along, and so does the need for a reset.
        try guest.update()
        #expect(try guest.qmp.status() == "internal-error")
        #expect(throws: QMPClient.Refusal.self) { try guest.qmp.execute("cont") }
        #expect(guest.requests("refused") == [])
        try guest.end()
    }

    /// What happens between an error and the guest's next step.
    enum Pause: CaseIterable { case stop, save, failedExec, exec }

    @Test("an error while the guest stands is told when it goes on", arguments: Pause.allCases)
    func pauses(_ pause: Pause) throws {
        let guest = try VFIOGuest()
        try guest.waitForProgress()
        let file = guest.directory.file("checkpoint")
        if pause == .stop {
            try guest.qmp.execute("stop")
        } else {
            try guest.qmp.execute("cpr-save", ["filename": file, "mode": "restart"])
        }
        try notice(Self.error, guest)
        #expect(!guest.process.errors.contains("Unrecoverable"))
        switch pause {
        case .stop, .save: try guest.qmp.execute("cont")
        case .failedExec:
            // The guest goes on in the old VMM by itself.
            #expect(throws: QMPClient.Refusal.self) {
                try guest.qmp.execute("cpr-exec", ["argv": BrokenSuccessor.endsAtOnce.arguments(guest.arguments)])
            }
        case .exec:
            try guest.qmp.execute("cpr-exec", ["argv": guest.arguments + ["-S"]])
            #expect(!guest.process.errors.contains("Unrecoverable"))
            try guest.qmp.execute("cpr-load", ["filename": file, "mode": "restart"])
        }
        try expectError(guest)
        #expect(sets(guest, Self.error).count == 1)
        try guest.qmp.execute("quit")
        try guest.process.waitForExit()
    }

    @Test("a new VMM that fails leaves both with the old one", arguments: BrokenSuccessor.allCases)
    func rollback(_ successor: BrokenSuccessor) throws {
        let guest = try VFIOGuest()
        try guest.waitForProgress()
        #expect(throws: QMPClient.Refusal.self) {
            try guest.update(
                successor.arguments(guest.arguments), ["preflight": false, "timeout-ms": successor.milliseconds])
        }
        try guest.waitForProgress()
        try notice(Self.request, guest)
        try guest.process.waitForErrors("wants the device back")
        try notice(Self.error, guest)
        try expectError(guest)
        #expect(sets(guest, Self.error).count == 1 && sets(guest, Self.request).count == 1)
        try guest.qmp.execute("quit")
        try guest.process.waitForExit()
    }

    @Test("x-req= can be another in the new VMM")
    func switches() throws {
        let guest = try VFIOGuest()
        try guest.waitForProgress()
        let without = guest.arguments.map { $0.hasPrefix("vfio-pci,") ? "\($0),x-req=off" : $0 }
        try guest.update(without)
        try guest.waitForProgress()
        #expect(sets(guest, Self.request) == ["set_irqs index=4 count=1", "set_irqs index=4 off"])
        try notice(Self.request, guest, reaches: false)
        try guest.update()
        try guest.waitForProgress()
        #expect(sets(guest, Self.request).last == "set_irqs index=4 count=1")
        try notice(Self.request, guest)
        try guest.process.waitForErrors("wants the device back")
        #expect(guest.requests("refused") == [] && sets(guest, Self.error).count == 1)
        try guest.end()
    }
}
