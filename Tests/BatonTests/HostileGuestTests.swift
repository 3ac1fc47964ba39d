import Foundation
import TestSupport
import Testing

/// A guest on KVM all of whose CPUs access ports and registers at random, at once (Tests/Guests/microvm/hostile.c).
@Suite(
    .serialized, .enabled(if: MicroVMROM.isUsable, MicroVMROM.usable),
    .enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"))
struct HostileGuestTests {
    private static let cpus = 3
    private static let page = 0x40_0000

    private static func arguments(_ directory: TemporaryDirectory, kernel: String, disk: String) -> [String] {
        [
            Products.baton, "-M", "microvm,memory-backend=ram,pcie=on", "-m", "64M", "-smp", "\(cpus)",
            "-object", "memory-backend-file,id=ram,size=64M,share=on,mem-path=\(directory.file("ram"))",
            "-kernel", kernel, "-nodefaults", "-serial", "null", "-no-shutdown",
            "-drive", "file=\(disk),format=raw,if=none,id=d0", "-device", "virtio-blk-device,drive=d0",
            "-drive", "file=\(disk).other,format=raw,if=none,id=d1", "-device", "virtio-blk-pci,drive=d1",
            "-netdev", wire("n0", directory.file("a"), directory.file("b")), "-device", "virtio-net-device,netdev=n0",
            "-netdev", wire("n1", directory.file("b"), directory.file("a")), "-device", "virtio-net-pci,netdev=n1",
            "-device", "virtio-rng-device", "-device", "virtio-rng-pci",
            "-chardev", "null,id=c", "-device", "isa-debugcon,iobase=0x402,chardev=c",
            "-qmp", "unix:\(directory.file("qmp")),server=on,wait=off", "-sandbox", "paths=\(directory.path)",
            "-cpr-enable", "restart", "-S",
        ]
    }

    private static func wire(_ id: String, _ here: String, _ there: String) -> String {
        "dgram,id=\(id),local.type=unix,local.path=\(here),remote.type=unix,remote.path=\(there)"
    }

    @Test("Accesses of several CPUs at once do the VMM no harm, over updates and resets", arguments: [1, 2, 3])
    func accesses(seed: UInt64) throws {
        let directory = try TemporaryDirectory(), kernel = directory.file("kernel")
        try GuestBuilder.microvm("hostile", to: kernel)
        let disk = try directory.write("disk", Data(count: 1 << 20))
        try directory.write("disk.other", Data(count: 1 << 20))
        let arguments = Self.arguments(directory, kernel: kernel, disk: disk)
        let process = try ChildProcess(arguments)
        let qmp = try QMPClient(path: directory.file("qmp"), of: process)
        let ram = try SharedMemory(path: directory.file("ram"), writable: true)
        func count(_ cpu: Int) -> UInt64 { ram.load(at: Self.page + 0x80 + 8 * cpu) }
        var resets = 0
        /// Lets the guest make accesses. It may come to where it cannot go on, and is then reset.
        func awaitAccesses(_ wanted: UInt64) throws {
            func sum() -> UInt64 { (0..<Self.cpus).reduce(0) { $0 + count($1) } }
            let target = sum() + wanted
            try eventually("the guest goes on; \(process.report)") {
                let status = try qmp.status()
                if !["running", "prelaunch"].contains(status) {
                    resets += 1
                    try qmp.execute("system_reset")
                }
                if status == "prelaunch" { try qmp.execute("cont") }
                return sum() >= target
            }
        }
        ram.store(seed, at: Self.page)
        ram.store(UInt64(Self.cpus), at: Self.page + 8)
        for round in 0..<4 {
            try awaitAccesses(20_000)
            if round % 2 == 1 { try qmp.execute("system_reset") }
            try qmp.execute("cpr-update", ["argv": Array(arguments.dropLast())])
        }
        try awaitAccesses(20_000)
        for cpu in 0..<Self.cpus { #expect(count(cpu) > 0, "CPU \(cpu)") }
        print("hostile guest \(seed): \((0..<Self.cpus).map(count)) accesses, \(resets) resets")
        try qmp.execute("quit")
        #expect(try process.waitForExit() == .status(0), "\(process.report)")
    }
}
