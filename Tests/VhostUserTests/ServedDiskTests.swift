import Foundation
import TestSupport
import Testing

/// Disks in other formats than raw, for which `baton` starts a storage daemon: a guest writes and compares blocks.
@Suite(
    "Disks that a storage daemon serves", .enabled(if: GuestBuilder.isAvailable, "needs the toolchain's clang and lld"),
    .enabled(if: Daemon.storageProgram != nil, "needs qemu-storage-daemon"),
    .enabled(if: Products.find("qemu-img") != nil, "needs qemu-img"))
struct ServedDiskTests {
    /// Makes an image of 16 MiB.
    private func image(_ format: String, in directory: TemporaryDirectory, _ options: [String] = []) throws -> String {
        let path = directory.file("image.\(format)")
        try ChildProcess.run(["qemu-img", "create", "-q", "-f", format] + options + [path, "16M"])
        return path
    }

    private func arguments(_ disk: [String], in directory: TemporaryDirectory, extra: [String]) throws -> [String] {
        [
            Products.baton, "-machine", "virt", "-m", "16M", "-bios", "none", "-kernel",
            try VhostUserGuest.image("blk"),
            "-nodefaults", "-nographic", "-serial", "file:\(directory.file("serial"))",
            "-qmp", "unix:\(directory.file("qmp")),server=on,wait=off", "-sandbox",
            "paths=\(TemporaryDirectory.parent)",
        ] + disk + extra
    }

    private func start(
        _ disk: [String], in directory: TemporaryDirectory, extra: [String] = ["-cpr-enable", "restart"]
    ) throws -> VhostUserGuest {
        let guest = try VhostUserGuest(
            "blk", in: directory, arguments: try arguments(disk, in: directory, extra: extra))
        try guest.waitForProgress()
        return guest
    }

    private func drive(_ options: String) -> [String] {
        ["-drive", "if=none,id=hd,\(options)", "-device", "virtio-blk-device,drive=hd"]
    }

    /// - Parameter mayLeak: a daemon was killed, which may have taken clusters that nothing refers to yet: status 3.
    private func check(_ image: String, _ format: String, mayLeak: Bool = false) throws {
        let check = try ChildProcess(["qemu-img", "check", "-f", format, image])
        let status = try check.waitForExit()
        #expect(status == .status(0) || mayLeak && status == .status(3), "\(check.report) \(check.output)")
    }

    /// Has the VMM end, and looks whether nothing of the daemon is left and the image is whole.
    private func end(_ guest: VhostUserGuest, _ image: String, _ format: String, mayLeak: Bool = false) throws {
        let daemon = try StartedDaemon.one(image), directory = try StartedDaemon.directory(daemon)
        try guest.end()
        // The VMM has waited for it.
        #expect(try StartedDaemon.storage(image) == [])
        #expect(!FileManager.default.fileExists(atPath: directory))
        try check(image, format, mayLeak: mayLeak)
    }

    @Test("in qcow2 goes on over ten updates, with one daemon, and is whole at the end")
    func updates() throws {
        let directory = try TemporaryDirectory(), image = try image("qcow2", in: directory)
        let guest = try start(drive("file=\(image),format=qcow2"), in: directory)
        let daemon = try StartedDaemon.one(image)
        for _ in 0..<10 {
            try guest.update()
            try guest.waitForProgress()
            #expect(try StartedDaemon.one(image) == daemon)
        }
        let commands: [(String, [String: Any])] = [
            ("block_resize", ["device": "hd", "size": 32 << 20]), ("blockdev-del", ["node-name": "hd"]),
        ]
        for (command, arguments) in commands {
            do {
                try guest.qmp.execute(command, arguments)
                Issue.record("\(command) was not refused")
            } catch let refusal as QMPClient.Refusal {
                #expect(
                    refusal.text
                        == "drive 'hd' is of the format 'qcow2', which \(command) cannot change while the VM runs")
            }
        }
        try end(guest, image, "qcow2")
    }

    @Test("by any option that QEMU has for it", arguments: ["vmdk", "vdi", "vhdx", "qcow2"])
    func forms(_ format: String) throws {
        let directory = try TemporaryDirectory(), image = try image(format, in: directory)
        let card = ["-device", "virtio-blk-device,drive=hd"]
        for disk in [
            drive("file=\(image),format=\(format),cache=none,discard=unmap,detect-zeroes=unmap"),
            drive("file=\(image)"),
            ["-drive", "file=\(image),if=virtio"], ["-hda", image], [image],
            ["-blockdev", "driver=\(format),node-name=hd,file.driver=file,file.filename=\(image)"] + card,
            [
                "-blockdev", "driver=file,node-name=f,filename=\(image)",
                "-blockdev", #"{"driver": "\#(format)", "node-name": "hd", "file": "f"}"#,
            ] + card,
        ] {
            let guest = try start(disk, in: directory)
            try guest.update()
            try guest.waitForProgress()
            try guest.end()
            // A daemon that is late leaves the image to its guard, which ends it.
            try eventually("the daemon's end") { try StartedDaemon.storage(image) == [] }
        }
    }

    @Test("on PCI, with memory that a backend gives, and in the reboot mode")
    func reboot() throws {
        let directory = try TemporaryDirectory(), image = try image("qcow2", in: directory)
        let ram = try directory.writeSparse("ram", size: 16 << 20), checkpoint = directory.file("checkpoint")
        let extra = [
            "-cpr-enable", "reboot", "-machine", "memory-backend=ram",
            "-object", "memory-backend-file,id=ram,size=16M,share=on,mem-path=\(ram)",
        ]
        let old = try start(drive("file=\(image)"), in: directory, extra: extra)
        try old.qmp.execute("cpr-save", ["filename": checkpoint, "mode": "reboot"])
        let done = try old.count()
        try end(old, image, "qcow2")
        let new = try VhostUserGuest(
            "blk", in: directory, arguments: try arguments(drive("file=\(image)"), in: directory, extra: extra + ["-S"])
        )
        try new.qmp.execute("cpr-load", ["filename": checkpoint, "mode": "reboot"])
        try new.waitForProgress()
        #expect(try new.count() > done)
        try end(new, image, "qcow2")
    }

    // MARK: Overlays

    @Test("with snapshot leaves the image as it is, over updates too", arguments: ["raw", "qcow2"])
    func snapshot(_ format: String) throws {
        let directory = try TemporaryDirectory(), image = try image(format, in: directory)
        let before = try Data(contentsOf: URL(fileURLWithPath: image))
        for disk in [
            ["-snapshot"] + drive("file=\(image),format=\(format)"),
            drive("file=\(image),format=\(format),snapshot=on"),
        ] {
            let guest = try start(disk, in: directory, extra: ["-cpr-enable", "restart", "-cpr-enable", "reboot"])
            let daemon = try StartedDaemon.one(image), files = try StartedDaemon.directory(daemon)
            try guest.update()
            try guest.waitForProgress()
            let size = try FileManager.default.attributesOfItem(atPath: "\(files)/overlay.qcow2")[.size] as? Int ?? 0
            #expect(size > 1 << 20)
            do {
                try guest.qmp.execute("cpr-save", ["filename": directory.file("checkpoint"), "mode": "reboot"])
                Issue.record("the save was not refused")
            } catch let refusal as QMPClient.Refusal {
                #expect(refusal.text.contains("drive 'hd' is temporary"), "\(refusal)")
            }
            try guest.end()
            #expect(!FileManager.default.fileExists(atPath: files))
            #expect(try Data(contentsOf: URL(fileURLWithPath: image)) == before)
        }
    }

    @Test("with a backing file writes to its own only")
    func backingFile() throws {
        let directory = try TemporaryDirectory()
        let base = try directory.writeSparse("base", size: 16 << 20)
        let image = try image("qcow2", in: directory, ["-b", base, "-F", "raw"])
        let guest = try start(drive("file=\(image),format=qcow2"), in: directory)
        try end(guest, image, "qcow2")
        #expect(try Data(contentsOf: URL(fileURLWithPath: base)).allSatisfy { $0 == 0 })
    }

    // MARK: Daemons that die

    @Test("comes back when its daemon is killed, also with an update meanwhile")
    func killed() throws {
        let directory = try TemporaryDirectory(), image = try image("qcow2", in: directory)
        let guest = try start(drive("file=\(image),format=qcow2"), in: directory)
        for round in 0..<4 {
            let daemon = try StartedDaemon.one(image)
            kill(daemon, SIGKILL)
            if round % 2 == 1 { try guest.update() }
            try eventually("another daemon serves; \(guest.process.report)") {
                let all = try StartedDaemon.storage(image)
                return all.count == 1 && all[0] != daemon
            }
            try guest.waitForProgress()
        }
        #expect(guest.process.errors.contains("drive 'hd': 'qemu-storage-daemon' was ended by signal 9"))
        try end(guest, image, "qcow2", mayLeak: true)
    }

    @Test("whose daemon hangs holds neither monitors, nor updates, nor the end up")
    func hung() throws {
        let directory = try TemporaryDirectory(), image = try image("qcow2", in: directory)
        let guest = try start(drive("file=\(image),format=qcow2"), in: directory)
        let daemon = try StartedDaemon.one(image)
        kill(daemon, SIGSTOP)
        for _ in 0..<3 { try guest.update() }
        _ = try guest.qmp.execute("query-status")
        #expect(try StartedDaemon.one(image) == daemon)
        kill(daemon, SIGCONT)
        try guest.waitForProgress()
        kill(daemon, SIGSTOP)
        try end(guest, image, "qcow2")
    }

    @Test("ends with a VMM that is killed")
    func vmmKilled() throws {
        let directory = try TemporaryDirectory(), image = try image("qcow2", in: directory)
        let guest = try start(drive("file=\(image),format=qcow2"), in: directory)
        // Its successors too are the one that matters.
        try guest.update()
        let daemon = try StartedDaemon.one(image), files = try StartedDaemon.directory(daemon)
        guest.process.signal(SIGKILL)
        try StartedDaemon.awaitEnd(of: daemon, files)
        try check(image, "qcow2")
    }

    @Test("stays over updates that fail, and a trial starts none")
    func rollback() throws {
        let directory = try TemporaryDirectory(), image = try image("qcow2", in: directory)
        let guest = try start(drive("file=\(image),format=qcow2"), in: directory)
        let daemon = try StartedDaemon.one(image)
        for preflight in [true, false] {
            for successor in [guest.arguments + ["-device", "no-such-device"], ["/bin/false"]] {
                do {
                    try guest.qmp.execute("cpr-update", ["argv": successor, "preflight": preflight])
                    Issue.record("the update did not fail")
                } catch is QMPClient.Refusal {}
                try guest.waitForProgress()
                #expect(try StartedDaemon.one(image) == daemon)
            }
        }
        try guest.update()
        try guest.waitForProgress()
        #expect(try StartedDaemon.one(image) == daemon)
        // The VM is another process' child by now.
        try guest.qmp.execute("quit")
        try eventually("the daemon ends") { try StartedDaemon.storage(image).isEmpty }
        try check(image, "qcow2")
    }

    @Test("on a file system that becomes full fails the guest's requests, and nothing else")
    func fullDisk() throws {
        let directory = try TemporaryDirectory()
        let image = directory.file("small/image.qcow2")
        try FileManager.default.createDirectory(atPath: directory.file("small"), withIntermediateDirectories: true)
        let script =
            "mount -t tmpfs -o size=1m none \(directory.file("small")) && "
            + "qemu-img create -q -f qcow2 \(image) 16M && exec \"$@\""
        let guest = try VhostUserGuest(
            "blk", in: directory,
            arguments: try arguments(
                drive("file=\(image),format=qcow2"), in: directory, extra: ["-cpr-enable", "restart"]),
            prefix: ["unshare", "--mount", "sh", "-c", script, "sh"])
        try eventually("the guest is told; \(guest.serial)") { guest.serial.contains("FAIL status") }
        let daemon = try StartedDaemon.one(image)
        try guest.update()
        #expect(try StartedDaemon.one(image) == daemon)
        try guest.end()
    }

    @Test("of which a part is missing fails what is read there, and harms nothing else")
    func cutShort() throws {
        let directory = try TemporaryDirectory(), image = try image("qcow2", in: directory)
        let first = try start(drive("file=\(image),format=qcow2"), in: directory)
        try first.end()
        let size = try FileManager.default.attributesOfItem(atPath: image)[.size] as? Int ?? 0
        try #require(size > 1 << 20)
        #expect(truncate(image, off_t(size / 2)) == 0)
        // What refers to the other half is found when it is read.
        let guest = try VhostUserGuest(
            "blk", in: directory,
            arguments: try arguments(
                drive("file=\(image),format=qcow2"), in: directory, extra: ["-cpr-enable", "restart"]))
        for _ in 0..<2 { try guest.update() }
        #expect(try guest.qmp.execute("query-status") as? [String: Any] != nil)
        let daemon = try StartedDaemon.one(image)
        try guest.update()
        #expect(try StartedDaemon.one(image) == daemon)
        try guest.end()
        try eventually("the daemon's end") { try StartedDaemon.storage(image) == [] }
    }

    // MARK: Refusals

    /// Programs that are not what they should be, first in PATH.
    @Test(
        "is refused with what its program says, or that it says nothing",
        arguments: [
            (
                "echo \"qemu-storage-daemon: --export: Parameter 'type' does not accept value 'vhost-user-blk'\" >&2; exit 1",
                "drive 'hd': --export: Parameter 'type' does not accept value 'vhost-user-blk'"
            ),
            ("exit 3", "drive 'hd': 'qemu-storage-daemon' ended with status 3"),
            ("kill -SEGV $$", "drive 'hd': 'qemu-storage-daemon' was ended by signal 11"),
            ("exec sleep 1000", "drive 'hd': 'qemu-storage-daemon' is not ready after 10 s"),
            // One that ignores the request to end.
            ("trap '' TERM; while :; do read line </dev/zero; done", "drive 'hd': 'qemu-storage-daemon' is not ready"),
            ("exec </dev/zero cat >&2", "drive 'hd': "),
        ])
    func brokenPrograms(_ script: String, _ says: String) throws {
        let directory = try TemporaryDirectory(), image = try image("qcow2", in: directory)
        let vmm = try ChildProcess(
            try arguments(drive("file=\(image)"), in: directory, extra: ["-S"]),
            environment: try directory.standIn(for: "qemu-storage-daemon", script))
        #expect(try vmm.waitForExit() == .status(1), "\(vmm.report)")
        #expect(vmm.errors.contains(says), "\(vmm.errors.suffix(400))")
    }

    /// Whether a process, or a child of it and so on, runs a program.
    private static func hasDescendant(of pid: pid_t, named name: String) -> Bool {
        let children = (try? ProcFile.children(of: pid)) ?? []
        return children.contains { child in
            (try? ProcFile.text("/proc/\(child)/comm"))?.hasPrefix(name) == true
                || hasDescendant(of: child, named: name)
        }
    }

    @Test("whose daemon does not become ready does not keep a VMM that is told to end", arguments: [SIGTERM, SIGINT])
    func endedAtTheStart(_ signal: Int32) throws {
        let directory = try TemporaryDirectory(), image = try image("qcow2", in: directory)
        let vmm = try ChildProcess(
            try arguments(drive("file=\(image)"), in: directory, extra: ["-S"]),
            environment: try directory.standIn(for: "qemu-storage-daemon", "exec sleep 1000"))
        try eventually("the daemon starts; \(vmm.report)") { Self.hasDescendant(of: vmm.pid, named: "sleep") }
        vmm.signal(signal)
        #expect(try vmm.waitForExit() == .status(1), "\(vmm.report)")
        #expect(
            vmm.errors.contains("the VMM was told to end before 'qemu-storage-daemon' was ready")
                && !vmm.errors.contains("is not ready after"), "\(vmm.errors)")
    }

    @Test("is refused with the reason when it cannot be served")
    func refusals() throws {
        let directory = try TemporaryDirectory(), image = try image("qcow2", in: directory)
        let broken = try directory.write("broken.qcow2", Data([0x51, 0x46, 0x49, 0xfb, 0, 0, 0, 3]) + Data(count: 64))
        let loop = directory.file("loop.qcow2")
        try ChildProcess.run(["qemu-img", "create", "-q", "-f", "qcow2", loop, "16M"])
        try ChildProcess.run(["qemu-img", "rebase", "-u", "-b", loop, "-F", "qcow2", loop])
        let cut = try directory.write("cut.qcow2", try Data(contentsOf: URL(fileURLWithPath: image)).prefix(64))
        // Each behind the other.
        let (first, second) = (directory.file("first.qcow2"), directory.file("second.qcow2"))
        for path in [first, second] {
            try ChildProcess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "16M"])
        }
        try ChildProcess.run(["qemu-img", "rebase", "-u", "-b", second, "-F", "qcow2", first])
        try ChildProcess.run(["qemu-img", "rebase", "-u", "-b", first, "-F", "qcow2", second])
        // It says that it has more than any file can.
        var header = try Data(contentsOf: URL(fileURLWithPath: image))
        header.replaceSubrange(24..<32, with: Data(repeating: 0xff, count: 8))
        let endless = try directory.write("endless.qcow2", header)
        let cases: [(disk: [String], path: String?, says: [String])] = [
            (
                drive("file=\(image),format=qcow2"), "/nowhere",
                ["drive 'hd': cannot execute 'qemu-storage-daemon'", "install"]
            ),
            (drive("file=\(directory.file("none")),format=qcow2"), nil, ["Could not open", "No such file"]),
            (drive("file=\(broken)"), nil, ["drive 'hd'", "looks like an image of the format qcow2"]),
            (drive("file=\(cut),format=qcow2"), nil, ["drive 'hd'"]),
            (drive("file=\(loop),format=qcow2"), nil, ["drive 'hd'"]),
            (drive("file=\(first),format=qcow2"), nil, ["drive 'hd'"]),
            (drive("file=\(first),format=qcow2,snapshot=on"), nil, ["qemu-img could not make a temporary overlay"]),
            (drive("file=\(endless),format=qcow2"), nil, ["drive 'hd'"]),
            (drive("file=\(cut),format=qcow2,snapshot=on"), nil, ["qemu-img could not make a temporary overlay"]),
            (drive("file=\(image),format=no-such"), nil, ["does not accept value 'no-such'"]),
            (drive("file=\(image),format=vmdk"), nil, ["drive 'hd'"]),
            (drive("file=\(image),werror=stop"), nil, ["werror=stop is not supported", "werror=report"]),
            (drive("file=\(image),cache=writethrough"), nil, ["cache=writethrough is not supported"]),
            (
                ["-drive", "if=none,id=hd,file=\(image)", "-device", "virtio-blk-device,drive=hd,serial=1"], nil,
                ["serial' is not available"]
            ),
            (drive("file=\(image)") + ["-device", "virtio-blk-device,drive=hd"], nil, ["in use"]),
            (
                ["-machine", "memory-backend=r", "-object", "memory-backend-ram,id=r,size=16M"]
                    + drive("file=\(image)"), nil, ["share=on"]
            ),
            (["-blockdev", "driver=qcow2,node-name=hd,file=nobody"], nil, ["nobody"]),
        ]
        for (disk, path, says) in cases {
            let vmm = try ChildProcess(
                try arguments(disk, in: directory, extra: ["-S"]), environment: path.map { ["PATH": $0] } ?? [:])
            #expect(try vmm.waitForExit() == .status(1), "\(disk): \(vmm.report)")
            for text in says { #expect(vmm.errors.contains(text), "\(disk): \(vmm.errors)") }
            try eventually("no daemon is left") { try StartedDaemon.storage(directory.path).isEmpty }
        }
    }
}
