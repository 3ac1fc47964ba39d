import Foundation
import TestSupport
import Testing

/// A guest that writes its disk and reads it back, with sixteen requests in hand on each queue, and says FAIL when one is
/// lost, done twice or wrong.
final class DiskGuest {
    static let size = 8 << 20

    let directory: TemporaryDirectory
    let process: ChildProcess
    private(set) var qmp: QMPClient
    let arguments: [String]

    /// - Parameters:
    ///   - disk: the image; made if nil.
    ///   - drive: keys of `-drive`.
    ///   - device: keys of the device.
    ///   - memory: options that make 16 MiB of RAM.
    init(
        in directory: TemporaryDirectory, disk: String? = nil, drive: String = "", device: String = "",
        queues: Int = 1, guest: String = "vhost/blk.c",
        memory: [String] = [
            "-machine", "memory-backend=ram", "-object", "memory-backend-memfd,id=ram,size=16M,share=on",
        ]
    ) throws {
        self.directory = directory
        let image = try disk ?? directory.writeSparse("disk", size: Self.size)
        arguments =
            [
                Products.baton, "-machine", "virt", "-m", "16M", "-bios", "none",
                "-kernel", try GuestBuilder.flat(guest, flags: ["-DQUEUES=\(queues)"]),
                "-drive", "if=none,id=d,file=\(image),format=raw\(drive)",
                "-device", "virtio-blk-device,drive=d,num-queues=\(queues)\(device)",
                "-nodefaults", "-nographic", "-d", "guest_errors", "-serial", "file:\(directory.file("serial"))",
                "-qmp", "unix:\(directory.file("qmp")),server=on,wait=off", "-sandbox", "paths=\(directory.path)",
                "-cpr-enable", "restart",
            ] + memory
        process = try ChildProcess(arguments)
        qmp = try QMPClient(path: directory.file("qmp"), of: process)
    }

    deinit { qmp.endVMM(startedAs: process) }

    var serial: String { (try? String(contentsOfFile: directory.file("serial"), encoding: .utf8)) ?? "" }

    /// How many requests the guest says it has done.
    func count() throws -> Int {
        let text = serial
        guard !text.contains("FAIL") else {
            throw TestError("the guest says \(text.suffix(200)), the VMM: \(process.errors)")
        }
        let complete = text.split(separator: "\n", omittingEmptySubsequences: false).dropLast()
        return complete.last { $0.hasPrefix("blk: ") }.flatMap { Int($0.dropFirst(5)) } ?? 0
    }

    /// Waits until the guest has done some hundred more requests.
    func waitForProgress() throws {
        let before = try count()
        try eventually("the guest's requests go on past \(before); it said \(serial.suffix(200)); \(process.report)") {
            try count() >= before + 512
        }
    }

    func update(_ argv: [String]? = nil, preflight: Bool = false) throws {
        try qmp.execute("cpr-update", ["argv": argv ?? arguments, "preflight": preflight])
    }

    func end() throws {
        try qmp.execute("quit")
        #expect(try process.waitForExit() == .status(0))
    }

    func block() throws -> [String: Any] {
        (try qmp.execute("query-block") as? [[String: Any]])?.first ?? [:]
    }
}

@Suite("Disks", .enabled(if: GuestBuilder.isAvailable, "needs the toolchain's clang and lld"))
struct DiskTests {
    private let directory: TemporaryDirectory
    init() throws { directory = try TemporaryDirectory() }

    private static let kinds: [(drive: String, queues: Int)] = [
        (",aio=threads", 1), (",aio=io_uring", 1), (",aio=threads,cache=writethrough", 2), (",cache=none", 2),
        (",cache=directsync,aio=native", 1), (",cache=unsafe,detect-zeroes=unmap", 4),
    ]

    @Test("nothing is lost or done twice over updates, whatever carries the requests out", arguments: kinds)
    func updates(_ kind: (drive: String, queues: Int)) throws {
        let guest = try DiskGuest(in: directory, drive: kind.drive, queues: kind.queues)
        try guest.waitForProgress()
        for round in 0..<8 {
            try guest.update(preflight: round == 0)
            try guest.waitForProgress()
        }
        try guest.end()
    }

    @Test("an update that fails leaves the disk at work")
    func failures() throws {
        let guest = try DiskGuest(in: directory)
        try guest.waitForProgress()
        for argv in [["/nonexistent"], guest.arguments + ["-device", "virtio-rng-device"], ["/bin/false"]] {
            #expect(throws: QMPClient.Refusal.self) { try guest.update(argv) }
            try guest.waitForProgress()
        }
        try guest.update()
        try guest.waitForProgress()
        // The process that was started ended as the command of the last failure.
        try guest.qmp.execute("quit")
    }

    @Test("a save and what follows it go on where the guest stood, and stop and cont too")
    func saves() throws {
        let guest = try DiskGuest(in: directory)
        try guest.waitForProgress()
        for _ in 0..<5 {
            try guest.qmp.execute("stop")
            try guest.qmp.execute("cont")
            try guest.qmp.execute("cpr-save", ["filename": directory.file("state"), "mode": "restart"])
            try guest.qmp.execute("cpr-exec", ["argv": guest.arguments + ["-S"]])
            try guest.qmp.execute("cpr-load", ["filename": directory.file("state"), "mode": "restart"])
            try guest.waitForProgress()
        }
        try guest.end()
    }

    @Test("engines and caches may be others after an update")
    func changes() throws {
        let guest = try DiskGuest(in: directory, drive: ",aio=threads")
        try guest.waitForProgress()
        for drive in [",aio=io_uring,cache=none", ",aio=threads,cache=directsync", ",aio=io_uring", ",cache=unsafe"] {
            try guest.update(guest.arguments.map { $0.replacingOccurrences(of: ",aio=threads", with: drive) })
            try guest.waitForProgress()
            let cache = (try guest.block()["inserted"] as? [String: Any])?["cache"] as? [String: Any]
            #expect(cache?["direct"] as? Bool == (drive.contains("none") || drive.contains("directsync")))
        }
        try guest.end()
    }

    @Test(
        "a full disk stops the guest until there is room, over an update too",
        .enabled(if: geteuid() == 0, "needs root, to mount a small file system"))
    func full() throws {
        let mount = directory.file("small")
        try FileManager.default.createDirectory(atPath: mount, withIntermediateDirectories: false)
        try ChildProcess.run(["mount", "-t", "tmpfs", "-o", "size=2M", "tmpfs", mount])
        defer { _ = try? ChildProcess.run(["umount", "-l", mount]) }
        let disk = mount + "/disk"
        #expect(
            FileManager.default.createFile(atPath: disk, contents: nil) && truncate(disk, off_t(DiskGuest.size)) == 0)
        let guest = try DiskGuest(in: directory, disk: disk)
        let data = try guest.qmp.waitForEvent("BLOCK_IO_ERROR")
        #expect(data["action"] as? String == "stop" && data["nospace"] as? Bool == true)
        #expect(data["operation"] as? String == "write" && data["device"] as? String == "d")
        #expect(data["reason"] as? String == "No space left on device")
        _ = try guest.qmp.waitForEvent("STOP")
        #expect(try guest.qmp.status() == "io-error")
        #expect(try guest.block()["io-status"] as? String == "nospace")
        // There is no room yet.
        try guest.qmp.execute("cont")
        _ = try guest.qmp.waitForEvent("STOP")
        #expect(try guest.qmp.status() == "io-error")
        try guest.update(preflight: true)
        #expect(try guest.qmp.status() == "io-error")
        try ChildProcess.run(["mount", "-o", "remount,size=32M", mount])
        try guest.qmp.execute("cont")
        try guest.waitForProgress()
        #expect(try guest.qmp.status() == "running")
        #expect(try guest.block()["io-status"] as? String == "ok")
        try guest.end()
    }

    @Test(
        "an image that has become shorter is an error, which the policy decides about", arguments: ["stop", "report"])
    func shrinks(_ policy: String) throws {
        // The guest only reads: a write would make the file longer again.
        let size = 2000 << 20
        let disk = try directory.writeSparse("large", size: size)
        let guest = try DiskGuest(
            in: directory, disk: disk, device: ",rerror=\(policy)", guest: "flood/flood.c")
        try eventually("the guest reads; \(guest.process.report)") { guest.serial.contains("flood: asked\n") }
        #expect(truncate(disk, 0) == 0)
        let data = try guest.qmp.waitForEvent("BLOCK_IO_ERROR")
        #expect(data["operation"] as? String == "read" && data["action"] as? String == policy)
        if policy == "stop" {
            _ = try guest.qmp.waitForEvent("STOP")
            #expect(try guest.qmp.status() == "io-error")
            #expect(try guest.block()["io-status"] as? String == "failed")
            // The disk is as large as before, in this VMM and the next, so that what was asked for is done when the
            // file has its length again.
            try guest.update(preflight: true)
            let image = (try guest.block()["inserted"] as? [String: Any])?["image"] as? [String: Any]
            #expect(image?["virtual-size"] as? Int == size)
            #expect(truncate(disk, off_t(size)) == 0)
            try guest.qmp.execute("cont")
            try eventually("a request is done; \(guest.serial.suffix(200)); \(guest.process.report)") {
                guest.serial.contains("flood: 1\n")
            }
            #expect(!guest.serial.contains("FAIL"))
        } else {
            try eventually("the guest has the error") { guest.serial.contains("FAIL") }
            #expect(try guest.qmp.status() == "running")
        }
        try guest.end()
    }

    @Test(
        "a disk that hangs holds up neither monitors nor the guest's other work, and an update is refused",
        .enabled(if: HeldFile.isAvailable, "needs root, and a kernel with permission events of fanotify"))
    func hangs() throws {
        let disk = try directory.writeSparse("slow", size: DiskGuest.size)
        let file = try HeldFile(disk)
        let guest = try DiskGuest(in: directory, disk: disk, drive: ",aio=threads")
        try guest.waitForProgress()
        file.hold()
        defer { file.release() }
        try eventually("all requests wait") { file.count == 16 }
        #expect(try guest.qmp.status() == "running")
        for preflight in [true, false] {
            let answer = refusal {
                try guest.qmp.execute(
                    "cpr-update", ["argv": guest.arguments, "timeout-ms": 300, "preflight": preflight])
            }
            #expect(answer.contains("16 requests of drive 'd' did not end within 300 ms"), "\(answer)")
            #expect(try guest.qmp.status() == "running")
        }
        let before = try guest.count()
        file.release()
        try eventually("the guest goes on; \(guest.process.report)") { try guest.count() > before }
        try guest.update()
        try guest.waitForProgress()
        try guest.end()
    }

    @Test("a disk is resized under the guest, which is told")
    func resize() throws {
        let guest = try DiskGuest(in: directory)
        try guest.waitForProgress()
        try guest.qmp.execute("block_resize", ["device": "d", "size": 2 * DiskGuest.size])
        try eventually("the guest is told; \(guest.serial.suffix(200))") {
            guest.serial.contains("config: \(2 * DiskGuest.size / 512)\n")
        }
        let attributes = try FileManager.default.attributesOfItem(atPath: directory.file("disk"))
        #expect(attributes[.size] as? Int == 2 * DiskGuest.size)
        try guest.update()
        try guest.waitForProgress()
        let image = (try guest.block()["inserted"] as? [String: Any])?["image"] as? [String: Any]
        #expect(image?["virtual-size"] as? Int == 2 * DiskGuest.size)
        func refused(_ arguments: [String: Any]) -> String {
            refusal { try guest.qmp.execute("block_resize", arguments) }
        }
        #expect(refused(["device": "d", "size": 0]).contains("expects a >0 size"))
        #expect(refused(["device": "x", "size": 512]).contains("Cannot find device='x'"))
        #expect(refused(["size": 512]).contains("Either node-name or device must be specified"))
        try guest.end()
    }

    @Test("nodes come and go")
    func nodes() throws {
        let guest = try DiskGuest(in: directory)
        let other = try directory.writeSparse("other", size: 1 << 20)
        try guest.qmp.execute(
            "blockdev-add",
            ["driver": "raw", "node-name": "n", "file": ["driver": "file", "filename": other] as [String: Any]])
        func names() throws -> [String] {
            (try guest.qmp.execute("query-named-block-nodes") as? [[String: Any]] ?? []).compactMap {
                $0["node-name"] as? String
            }
        }
        #expect(try names() == ["d", "n"])
        func refused(_ command: String, _ arguments: [String: Any]) -> String {
            refusal { try guest.qmp.execute(command, arguments) }
        }
        #expect(
            refused("blockdev-add", ["driver": "file", "node-name": "n", "filename": other]).contains("Duplicate nodes")
        )
        #expect(
            refused("blockdev-add", ["driver": "file", "node-name": "m", "filename": "/nonexistent"])
                .contains("No such file"))
        #expect(refused("blockdev-add", ["driver": "qcow2", "node-name": "m"]).contains("does not accept value"))
        #expect(refused("blockdev-del", ["node-name": "d"]).contains("in use"))
        #expect(refused("blockdev-del", ["node-name": "x"]).contains("Failed to find node"))
        try guest.qmp.execute("blockdev-del", ["node-name": "n"])
        #expect(try names() == ["d"])
        try guest.waitForProgress()
        try guest.end()
    }

    @Test(
        "options that do not go together are refused",
        arguments: [
            (",aio=native", "it requires cache.direct=on"), (",cache=x", "invalid cache option"),
            (",detect-zeroes=unmap,discard=ignore", "not allowed without setting discard"),
            (",rerror=enospc", "invalid for rerror"), (",aio=x", "does not accept value 'x'"),
        ])
    func wrongOptions(_ keys: String, _ text: String) throws {
        let disk = try directory.writeSparse("disk", size: 1 << 20)
        let process = try ChildProcess([
            Products.baton, "-nodefaults", "-drive", "if=none,id=d,file=\(disk),format=raw\(keys)",
        ])
        #expect(try process.waitForExit() == .status(1))
        #expect(process.errors.contains(text), "\(process.errors)")
    }
}
