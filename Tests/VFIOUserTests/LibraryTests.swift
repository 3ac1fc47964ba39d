import Foundation
import TestSupport
import Testing

/// Devices of others: on libvfio-user, and its own samples.
@Suite(
    "vfio-user-pci on libvfio-user",
    .enabled(if: GuestBuilder.isAvailable, "needs the toolchain's clang and lld"),
    .enabled(if: LibVFIOUser.isAvailable, LibVFIOUser.absence))
struct LibVFIOUserTests {
    struct Way: CustomTestStringConvertible, Sendable {
        let interrupts: VFIOUserGuest.Interrupts
        let asks: Bool
        var testDescription: String { "\(interrupts)\(asks ? " DMA by message" : "")" }
    }

    static let ways = [
        Way(interrupts: .msix, asks: false), Way(interrupts: .msi, asks: false), Way(interrupts: .intx, asks: false),
        Way(interrupts: .msix, asks: true), Way(interrupts: .intx, asks: true),
    ]

    @Test("the library's log has nothing of ten updates", arguments: ways)
    func counts(_ way: Way) throws {
        let programs = try LibVFIOUser.programs.get()
        let guest = try VFIOUserGuest(way.interrupts, server: [programs.device] + (way.asks ? ["--ask"] : []))
        try guest.waitForProgress()
        let before = guest.server.errors
        #expect(before.contains("attached") && before.contains("reset 0") && !before.contains("twin_socket"))
        for _ in 1...10 {
            try guest.update()
            try guest.waitForProgress()
        }
        #expect(guest.server.errors == before, "no reset, no new connection, no mapping, no interrupt set up again")
        try guest.end()
        try eventually("the library sees the end: \(guest.server.errors.suffix(500))") {
            guest.server.errors.contains("dma_unregister 0x80000000")
        }
    }

    /// How many rounds of 64 the guest has done.
    private func rounds(_ guest: VFIOUserGuest) throws -> Int {
        let serial = guest.serial
        guard !serial.contains("FAIL") else { throw TestError("the guest says \(serial.suffix(200))") }
        return serial.split(separator: "\n").count { $0.hasPrefix("sample: ") }
    }

    private func goesOn(_ guest: VFIOUserGuest) throws {
        let before = try rounds(guest)
        try eventually("the guest goes on: \(guest.process.errors)\(guest.server.errors.suffix(500))") {
            try rounds(guest) > before + 1
        }
    }

    /// - Parameter sign: what the server says when a client goes or comes, or resets it.
    private func sample(_ command: String, _ define: String, sign: [String]) throws {
        let guest = try VFIOUserGuest(
            .intx, server: [command, "-v"], kernel: try GuestBuilder.flat("vfio-user/sample.c", flags: ["-D\(define)"]))
        try goesOn(guest)
        let before = guest.server.errors
        for _ in 1...10 {
            try guest.update()
            try goesOn(guest)
        }
        let since = guest.server.errors.dropFirst(before.count)
        #expect(!sign.contains { since.contains($0) }, "\(since.suffix(2000))")
        try guest.end()
    }

    private static let signs = ["reset", "DMA region", "IRQ", "region_info", "devinfo"]

    @Test("of the sample gpio-pci-idio-16, where each write counts, none is lost or done twice over ten updates")
    func gpio() throws { try sample(try LibVFIOUser.programs.get().gpio, "GPIO", sign: Self.signs) }

    @Test(
        "the sample server goes on over ten updates, whose I/O regions are no powers of two",
        .enabled(if: (try? LibVFIOUser.programs.get().server) != nil, "needs the library of before its check of sizes"))
    func server() throws {
        try sample(try #require(LibVFIOUser.programs.get().server), "SERVER", sign: Self.signs)
    }
}
