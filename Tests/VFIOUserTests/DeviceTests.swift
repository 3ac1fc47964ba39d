import Foundation
import TestSupport
import Testing

@Suite("vfio-user-pci", .enabled(if: GuestBuilder.isAvailable, "needs the toolchain's clang and lld"))
struct VFIOUserDeviceTests {
    @Test(
        "BARs, DMA and interrupts of the server's device reach the guest", arguments: VFIOUserGuest.Interrupts.allCases)
    func works(_ interrupts: VFIOUserGuest.Interrupts) throws {
        let guest = try VFIOUserGuest(interrupts)
        try guest.waitForProgress()
        let log = guest.log
        #expect(log.prefix(2) == ["connect", "version"])
        #expect(log.contains("dma_map address=0x80000000 size=0x1000000 rw fd"))
        // What the guest cannot write is not given away.
        #expect(log.filter { $0.hasPrefix("dma_map") && $0.contains(" ro") }.allSatisfy { !$0.hasSuffix("fd") })
        #expect(log.filter { $0 == "reset" }.count == 1)
        // In messages of at most two descriptors, after what was before is off.
        let last = log.split { $0.hasPrefix("set_irqs") && $0.hasSuffix("off") }.last ?? []
        let sets = last.filter { $0.hasPrefix("set_irqs") }
        let starts = stride(from: 0, to: interrupts.count, by: 2)
        #expect(
            sets
                == starts.map {
                    "set_irqs index=\(interrupts.index) start=\($0) count=\(min(2, interrupts.count - $0))"
                })
        #expect(guest.log("refused") == [] && guest.log("fault") == [])
        try guest.end()
        try eventually("the server sees the end") { guest.log.last?.hasPrefix("disconnect") == true }
    }

    @Test(
        "a server that does DMA by message reaches guest memory",
        arguments: [["--ask"], ["--ask", "--twin"], ["--twin"]])
    func messages(_ options: [String]) throws {
        let guest = try VFIOUserGuest(options: options)
        try guest.waitForProgress()
        #expect(guest.log.contains(options.contains("--twin") ? "version twin" : "version"))
        #expect(guest.log("refused") == [] && guest.log("fault") == [])
        try guest.end()
    }

    @Test("guest memory that is not shared is reached by message")
    func privateMemory() throws {
        let guest = try VFIOUserGuest(options: ["--twin"], memory: "memory-backend-ram,id=ram,size=16M", extra: [])
        try guest.waitForProgress()
        #expect(guest.log.contains("dma_map address=0x80000000 size=0x1000000 rw"))
        #expect(guest.log("refused") == [] && guest.log("fault") == [])
        try guest.end()
    }

    @Test("a reset of the machine resets the device and its interrupts")
    func reset() throws {
        let guest = try VFIOUserGuest()
        try guest.waitForProgress()
        let before = guest.log.count
        try guest.qmp.execute("system_reset")
        try eventually("the guest starts again") {
            guest.log.dropFirst(before).contains("set_irqs index=2 start=2 count=2")
        }
        try eventually("the guest counts from the start") {
            try CountingDevice.progress(String(guest.serial.suffix(24))).count > 0
        }
        let since = guest.log.dropFirst(before)
        #expect(since.contains("set_irqs index=2 off") && since.filter { $0 == "reset" }.count == 1)
        #expect(guest.log("refused") == [] && guest.log("connect").count == 1)
        try guest.end()
    }

    @Test("options are QEMU's, in JSON and in keys")
    func keys() throws {
        let directory = try TemporaryDirectory()
        let server = try VFIOUserGuest.serve([], in: directory)
        defer { withExtendedLifetime(server) {} }
        let arguments = try VFIOUserGuest.arguments(
            .msix, in: directory,
            device:
                "vfio-user-pci,id=d,socket.type=unix,socket.path=\(VFIOUserGuest.socket(directory)),x-msg-timeout=900")
        let process = try ChildProcess(arguments)
        let qmp = try QMPClient(path: directory.file("qmp"), of: process)
        let answer = "\(try qmp.execute("query-pci"))"
        #expect(answer.contains("22089"), "the device's ID, 0x5649: \(answer)")
        try qmp.execute("quit")
        #expect(try process.waitForExit() == .status(0))
    }

    @Test("a connection that another program has made is used, and kept over updates")
    func passedConnection() throws {
        let guest = try VFIOUserGuest(device: "vfio-user-pci,id=d,socket.type=fd,socket.str=7")
        try guest.waitForProgress()
        let before = guest.log
        #expect(before.filter { $0 == "connect" }.count == 1)
        for _ in 1...3 {
            // The number means nothing to the next one, which inherits the connection.
            try guest.update()
            try guest.waitForProgress()
        }
        #expect(throws: QMPClient.Refusal.self) {
            try guest.update(BrokenSuccessor.endsAtOnce.arguments(guest.arguments), ["preflight": false])
        }
        try guest.waitForProgress()
        #expect(guest.log == before)
        try guest.qmp.execute("quit")
        try guest.process.waitForExit()
        try eventually("the server sees the end") { guest.log.last?.hasPrefix("disconnect") == true }
    }

    @Test("a passed connection without an id is a blocker")
    func needsID() throws {
        let guest = try VFIOUserGuest(device: "vfio-user-pci,socket.type=fd,socket.str=7")
        try guest.waitForProgress()
        let error = #expect(throws: QMPClient.Refusal.self) { try guest.update() }
        #expect(error?.text.contains("vfio-user device with socket.str=7 needs an id property") == true)
        try guest.waitForProgress()
        try guest.end()
    }

    @Test("a passed connection is one device's")
    func passedTwice() throws {
        let directory = try TemporaryDirectory()
        let server = try VFIOUserGuest.serve([], in: directory)
        defer { withExtendedLifetime(server) {} }
        let fd = try VFIOUserGuest.connect(directory)
        defer { close(fd) }
        func device(_ id: String) -> String { "vfio-user-pci,id=\(id),socket.type=fd,socket.str=7" }
        let arguments = try VFIOUserGuest.arguments(.msix, in: directory, device: device("a"))
        let process = try ChildProcess(arguments + ["-device", device("b")], descriptors: [7: fd])
        #expect(try process.waitForExit() == .status(1))
        #expect(process.errors.contains("vfio vfio-user:fd:b: File descriptor '7' is another device's"))
    }

    @Test("the expansion ROM is the server's, or a file's, or none", arguments: ["", "rombar=0", "romfile="])
    func rom(_ options: String) throws {
        let directory = try TemporaryDirectory()
        let server = try VFIOUserGuest.serve([], in: directory)
        defer { withExtendedLifetime(server) {} }
        let file = options == "romfile=" ? try directory.write("rom", String(repeating: "r", count: 3000)) : ""
        let arguments = try VFIOUserGuest.arguments(
            .msix, in: directory,
            device: "vfio-user-pci,socket.type=unix,socket.path=\(VFIOUserGuest.socket(directory)),\(options)\(file)")
        let process = try ChildProcess(arguments)
        let qmp = try QMPClient(path: directory.file("qmp"), of: process)
        let bytes = (0..<0x8000).map { [0x55, 0xaa, 64].indices.contains($0) ? [0x55, 0xaa, 64][$0] : $0 * 7 & 0xff }
        let expected = [
            "": "32768 43605 \(bytes.reduce(0, +))", "rombar=0": "0",
            "romfile=": "4096 29298 \(3000 * 0x72 + 1096 * 0xff)",
        ]
        func found() -> String? {
            CountingDevice.finding(
                "rom", (try? String(contentsOfFile: directory.file("serial"), encoding: .utf8)) ?? "")
        }
        try eventually("the guest says what ROM it has: \(process.errors)") { found() != nil }
        #expect(found() == expected[options])
        #expect(VFIOUserGuest.log(directory).filter { $0.hasPrefix("refused") } == [])
        try qmp.execute("cpr-update", ["argv": arguments])
        try qmp.execute("quit")
        #expect(try process.waitForExit() == .status(0))
    }

    static let refusals: [(device: String, error: String)] = [
        ("vfio-user-pci", "No socket specified"),
        ("vfio-user-pci,socket.path=/x", "Parameter 'socket.type' is missing"),
        ("vfio-user-pci,socket.type=unix", "Parameter 'socket.path' is missing"),
        ("vfio-user-pci,socket.type=inet,socket.path=/x", "Unsupported socket type inet"),
        ("vfio-user-pci,socket.type=unix,socket.path=/x,socket.str=7", "Parameter 'socket.str' is unexpected"),
        ("vfio-user-pci,socket.type=fd,socket.path=/x,socket.str=7", "Parameter 'socket.path' is unexpected"),
        ("vfio-user-pci,socket.type=fd", "Parameter 'socket.str' is missing"),
        ("vfio-user-pci,socket.type=fd,socket.str=x", "vfio vfio-user:fd:x: Unable to parse FD number x"),
        ("vfio-user-pci,socket.type=fd,socket.str=-1", "Unable to parse FD number -1"),
        ("vfio-user-pci,socket.type=fd,socket.str=99999999999", "Unable to parse FD number 99999999999"),
        ("vfio-user-pci,socket.type=fd,socket.str=700", "File descriptor '700' is not a connected UNIX stream socket"),
        (
            "vfio-user-pci,id=d,socket.type=fd,socket.str=0",
            "vfio vfio-user:fd:d: File descriptor '0' is not a connected UNIX stream socket"
        ),
        (
            "vfio-user-pci,socket.type=unix,socket.path=/nonexistent/socket",
            "vfio vfio-user:/nonexistent/socket: Failed to connect to '/nonexistent/socket': "
                + "No such file or directory"
        ),
        ("vfio-user-pci,socket.type=unix,socket.path=/etc/passwd", "Connection refused"),
        ("vfio-user-pci,socket.type=unix,socket.path=/x,x-msg-timeout=0", "x-msg-timeout"),
        ("vfio-user-pci,sockets=1", "Property 'vfio-user-pci.sockets' not found"),
    ]

    @Test("bad options are refused with QEMU's words", arguments: refusals.indices)
    func badOptions(_ index: Int) throws {
        let directory = try TemporaryDirectory()
        let (device, error) = Self.refusals[index]
        let process = try ChildProcess(try VFIOUserGuest.arguments(.msix, in: directory, device: device))
        #expect(try process.waitForExit() == .status(1))
        #expect(process.errors.contains(error), "\(process.errors)")
    }

    @Test("a server's device cannot be given twice")
    func twice() throws {
        let directory = try TemporaryDirectory()
        let server = try VFIOUserGuest.serve([], in: directory)
        defer { withExtendedLifetime(server) {} }
        let arguments = try VFIOUserGuest.arguments(.msix, in: directory)
        let at = try #require(arguments.firstIndex(of: "-device"))
        let process = try ChildProcess(arguments + arguments[at...(at + 1)])
        #expect(try process.waitForExit() == .status(1))
        #expect(process.errors.contains("device is already attached"), "\(process.errors)")
    }
}
