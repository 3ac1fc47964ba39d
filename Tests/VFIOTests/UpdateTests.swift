import Foundation
import TestSupport
import Testing

/// What the kernel sees of an update: the addresses of guest memory given up,
/// and set anew.
@Suite("vfio-pci over an update", .enabled(if: GuestBuilder.isAvailable, "needs the toolchain's clang and lld"))
struct VFIOUpdateTests {
    /// The address of each mapping, in order.
    private func ranges(_ guest: VFIOGuest, _ name: String) -> [String] {
        guest.requests("\(name) ").map { $0.split(separator: " ")[1...2].joined(separator: " ") }
    }

    /// The device's count in a request's line.
    private func count(_ line: String) throws -> Int {
        let number = line.split(separator: " ").last { $0.hasPrefix("dma=") }?.dropFirst(4)
        return try #require(number.flatMap { Int($0) })
    }

    @Test(
        "DMA and interrupts go on over ten updates, with no reset and nothing opened again",
        arguments: VFIOGuest.Interrupts.allCases)
    func goesOn(_ interrupts: VFIOGuest.Interrupts) throws {
        let guest = try VFIOGuest(interrupts, extra: ["-cpr-enable", "restart", "-only-cpr-capable"])
        try guest.waitForProgress()
        let mapped = ranges(guest, "map_dma")
        #expect(mapped.contains("iova=0x80000000 size=0x1000000"))
        var roundsAtWork = 0
        for round in 1...10 {
            let before = guest.log.count
            try guest.update()
            try guest.waitForProgress()
            let since = Array(guest.requests.dropFirst(before))
            let names = since.map { String($0.prefix { $0 != " " }) }
            #expect(names == ["unmap_vaddr"] + mapped.map { _ in "map_vaddr" }, "round \(round): \(since)")
            #expect(ranges(guest, "map_vaddr").suffix(mapped.count) == mapped[...])
            let (first, last) = (try count(try #require(since.first)), try count(try #require(since.last)))
            #expect(last >= first)
            if last > first { roundsAtWork += 1 }
        }
        // The device has not stood still while nobody had the addresses, but for want of a processor.
        #expect(roundsAtWork > 0)
        // Trial runs have another PID, and so would be seen if they did anything. So has the old VMM of each update,
        // which gives the addresses up.
        #expect(Set(guest.log.filter { !$0.contains("unmap_vaddr") }.map { $0.prefix { $0 != " " } }).count == 1)
        #expect(guest.requests("open_").count == 2 && guest.requests("get_device_fd").count == 1)
        #expect(guest.requests("refused") == [] && guest.requests("fault") == [])
        #expect(guest.requests("reset").count == 1)
        try guest.end()
    }

    @Test("the three steps do the same")
    func threeSteps() throws {
        let guest = try VFIOGuest()
        try guest.waitForProgress()
        let file = guest.directory.file("checkpoint")
        let before = guest.log.count
        try guest.qmp.execute("cpr-save", ["filename": file, "mode": "restart"])
        #expect(guest.log.count == before, "a save gives nothing up")
        try guest.qmp.execute("cont")
        try guest.waitForProgress()
        #expect(guest.log.count == before)
        try guest.qmp.execute("cpr-save", ["filename": file, "mode": "restart"])
        try guest.qmp.execute("cpr-exec", ["argv": guest.arguments + ["-S"]])
        #expect(guest.requests.last?.hasPrefix("unmap_vaddr") == true, "memory is not ours before the commit")
        try guest.qmp.execute("cpr-load", ["filename": file, "mode": "restart"])
        try guest.waitForProgress()
        #expect(guest.requests.last?.hasPrefix("map_vaddr") == true)
        #expect(guest.requests("refused") == [] && guest.requests("fault") == [] && guest.requests("reset").count == 1)
        try guest.end()
    }

    @Test("a new VMM that fails leaves the device at work in the old one", arguments: BrokenSuccessor.allCases)
    func rollback(_ successor: BrokenSuccessor) throws {
        let guest = try VFIOGuest()
        try guest.waitForProgress()
        let mapped = ranges(guest, "map_dma")
        let argv = successor.arguments(guest.arguments)
        for _ in 0..<2 {
            let before = guest.log.count
            #expect(throws: QMPClient.Refusal.self) {
                try guest.update(argv, ["preflight": false, "timeout-ms": successor.milliseconds])
            }
            try guest.waitForProgress()
            let names = guest.requests.dropFirst(before).map { String($0.prefix { $0 != " " }) }
            // Nothing is given up before the new VMM is ready. One that fails later may have set addresses of its own: the
            // old one cannot know, and asks.
            let reached: [BrokenSuccessor] = [.lacksTheDevice, .hasAnotherDevice, .hasOneDeviceMore]
            guard reached.contains(successor) else {
                #expect(names == [])
                continue
            }
            #expect(names == ["unmap_vaddr", "refused"] + mapped.map { _ in "map_vaddr" })
            #expect(ranges(guest, "map_vaddr").suffix(mapped.count) == mapped[...])
        }
        // It can still be updated.
        try guest.update()
        try guest.waitForProgress()
        #expect(guest.requests("reset").count == 1 && guest.requests("open_").count == 2)
        #expect(guest.requests("fault") == [])
        // The simulator's own child is gone; it ends with the VMM that took the guest back.
        try guest.qmp.execute("quit")
        try guest.process.waitForExit()
        #expect(guest.requests.last?.contains("faults=0") == true)
    }

    @Test(
        "a preflight that fails has not touched the device", arguments: BrokenSuccessor.allCases,
        VFIOGuest.Interface.allCases)
    func preflight(_ successor: BrokenSuccessor, _ interface: VFIOGuest.Interface) throws {
        let guest = try VFIOGuest(devices: interface.devices)
        try guest.waitForProgress()
        let before = guest.log.count
        #expect(throws: QMPClient.Refusal.self) {
            try guest.update(successor.arguments(guest.arguments), ["timeout-ms": successor.milliseconds])
        }
        #expect(guest.log.count == before)
        try guest.waitForProgress()
        try guest.end()
    }

    @Test("addresses that cannot be given up end the update, not the guest")
    func refusedUnmap() throws {
        let guest = try VFIOGuest(options: ["--refuse", "unmap_vaddr=16:1"])
        try guest.waitForProgress()
        let error = #expect(throws: QMPClient.Refusal.self) { try guest.update() }
        #expect(error?.text.contains("vfio_dma_unmap_vaddr_all: Device or resource busy") == true)
        try guest.waitForProgress()
        try guest.update()
        try guest.waitForProgress()
        try guest.qmp.execute("quit")
        try guest.process.waitForExit()
    }

    @Test("an address that cannot be set leaves the guest at work, and is a blocker")
    func refusedMap() throws {
        let guest = try VFIOGuest(options: ["--refuse", "map_vaddr=14:2"])
        try guest.waitForProgress()
        let mapped = ranges(guest, "map_dma")
        try guest.update()
        try guest.process.waitForErrors("vfio_dma_map_vaddr of RAM block 'virt.flash0' at 0x20000000: Bad address")
        try guest.waitForProgress()
        // The others have theirs.
        #expect(ranges(guest, "map_vaddr") == mapped.filter { !$0.hasPrefix("iova=0x20000000 ") })
        let before = guest.log.count
        let error = #expect(throws: QMPClient.Refusal.self) { try guest.update() }
        #expect(error?.text.contains("VFIO container lacks the addresses of guest memory") == true)
        #expect(guest.log.count == before)
        try guest.waitForProgress()
        try guest.end()
    }

    static let blockers = [
        ("update_vaddr", "VFIO container does not support VFIO_UPDATE_VADDR"),
        ("unmap_all", "VFIO container does not support VFIO_UNMAP_ALL"),
    ]

    @Test("a container that cannot be kept is a blocker", arguments: blockers)
    func blocker(_ lack: String, _ text: String) throws {
        let guest = try VFIOGuest(options: ["--lack", lack])
        try guest.waitForProgress()
        let before = guest.log.count
        let error = #expect(throws: QMPClient.Refusal.self) { try guest.update() }
        #expect(error?.text.contains(text) == true)
        let answer = try guest.qmp.execute("query-cpr")
        #expect("\(answer)".contains(text))
        #expect(guest.log.count == before)
        try guest.end()
    }

    @Test("-only-cpr-capable refuses such a container at the start", arguments: blockers)
    func onlyCapable(_ lack: String, _ text: String) throws {
        let directory = try TemporaryDirectory()
        let arguments = try VFIOGuest.arguments(
            .msix, in: directory, extra: ["-cpr-enable", "restart", "-only-cpr-capable"])
        let process = try ChildProcess(VFIOGuest.simulator(directory, ["--lack", lack]) + arguments)
        #expect(try process.waitForExit() == .status(1))
        #expect(process.errors.contains(text) && process.errors.contains("-only-cpr-capable"), "\(process.errors)")
    }

    @Test("reboot mode would lose the device", arguments: VFIOGuest.Interface.allCases)
    func reboot(_ interface: VFIOGuest.Interface) throws {
        let guest = try VFIOGuest(devices: interface.devices, extra: ["-cpr-enable", "reboot"])
        try guest.waitForProgress()
        let error = #expect(throws: QMPClient.Refusal.self) {
            try guest.qmp.execute("cpr-save", ["filename": guest.directory.file("checkpoint"), "mode": "reboot"])
        }
        #expect(error?.text.contains("VFIO device only supports cpr-reboot for runstate suspended") == true)
        try guest.waitForProgress()
        try guest.end()
    }
}
