import Foundation
import TestSupport
import Testing

/// Devices that come and go while the guest runs, and over updates whose command line knows nothing of them.
@Suite(.enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"))
struct HotPlugTests {
    private static let ports = [
        "-device", "pcie-root-port,id=rp0,chassis=1", "-device", "pcie-root-port,id=rp1,chassis=2",
    ]

    private func guest(_ more: [String] = []) throws -> CountingGuest {
        // Ptys that come later have their files there.
        try CountingGuest(extra: ["-cpr-enable", "restart"] + Self.ports + more, paths: ["/dev/pts"])
    }

    /// Ids of what is in root ports that the guest has given bus numbers; of this guest, none has.
    private func plugged(_ qmp: QMPClient) throws -> [String] {
        let text = try qmp.execute("human-monitor-command", ["command-line": "info pci"]) as? String ?? ""
        return text.components(separatedBy: "id \"").dropFirst().map { String($0.prefix { $0 != "\"" }) }
            .filter { !$0.isEmpty && !$0.hasPrefix("rp") }
    }

    private func update(_ guest: CountingGuest, _ argv: [String]? = nil) throws {
        let before = guest.count
        try guest.qmp.execute("cpr-update", ["argv": argv ?? guest.arguments])
        try guest.waitForProgress(past: before)
    }

    private func deleted(_ qmp: QMPClient, _ id: String) throws {
        let data = try qmp.waitForEvent("DEVICE_DELETED") as? [String: String]
        #expect(data == ["device": id, "path": "/machine/peripheral/\(id)"])
    }

    @Test func aDeviceComesStaysOverUpdatesAndGoes() throws {
        let guest = try guest()
        defer { _ = try? guest.qmp.execute("quit") }
        try guest.qmp.execute("object-add", ["qom-type": "rng-random", "id": "r", "filename": "/dev/urandom"])
        try guest.qmp.execute("device_add", ["driver": "virtio-rng-pci", "bus": "rp0", "id": "e0", "rng": "r"])
        #expect(try plugged(guest.qmp) == ["e0"])
        for _ in 0..<2 {
            try update(guest)
            #expect(try plugged(guest.qmp) == ["e0"])
        }
        #expect(
            refusal { try guest.qmp.execute("object-del", ["id": "r"]) } == "object 'r' is in use, can not be deleted")
        // The slot's power is off: the guest need not be asked.
        try guest.qmp.execute("device_del", ["id": "e0"])
        try deleted(guest.qmp, "e0")
        #expect(try plugged(guest.qmp) == [])
        try guest.qmp.execute("object-del", ["id": "r"])
        try update(guest)
        #expect(try plugged(guest.qmp) == [])
        // Both names are free again, in whichever VMM.
        try guest.qmp.execute("object-add", ["qom-type": "rng-builtin", "id": "r"])
        try guest.qmp.execute("device_add", ["driver": "virtio-rng-pci", "bus": "rp0", "id": "e0", "rng": "r"])
        try update(guest)
        #expect(try plugged(guest.qmp) == ["e0"])
    }

    @Test func aDiskWithItsNode() throws {
        let guest = try guest()
        defer { _ = try? guest.qmp.execute("quit") }
        let image = try guest.directory.writeSparse("image", size: 1 << 20)
        let node: [String: Any] = ["driver": "file", "node-name": "n0", "filename": image]
        let disk = ["driver": "virtio-blk-pci", "bus": "rp1", "id": "d0", "drive": "n0"]
        try guest.qmp.execute("blockdev-add", node)
        try guest.qmp.execute("device_add", disk)
        try update(guest)
        #expect(try plugged(guest.qmp) == ["d0"])
        #expect(refusal { try guest.qmp.execute("blockdev-del", ["node-name": "n0"]) } == "Node n0 is in use")
        try guest.qmp.execute("device_del", ["id": "d0"])
        try deleted(guest.qmp, "d0")
        // Another disk on the same node.
        try guest.qmp.execute("device_add", disk)
        try guest.qmp.execute("device_del", ["id": "d0"])
        try deleted(guest.qmp, "d0")
        try guest.qmp.execute("blockdev-del", ["node-name": "n0"])
        try update(guest)
        #expect(refusal { try guest.qmp.execute("device_add", disk) }.contains("can't find value 'n0'"))
    }

    @Test func aCardWithItsBackEnd() throws {
        let directory = try TemporaryDirectory()
        let guest = try guest([
            "-netdev",
            "dgram,id=old,local.type=unix,local.path=\(directory.file("old")),remote.type=unix,"
                + "remote.path=\(directory.file("far"))",
            "-device", "virtio-net-pci,netdev=old,bus=rp1,id=c1",
        ])
        defer { _ = try? guest.qmp.execute("quit") }
        let peer = guest.directory.file("peer")
        let back: [String: Any] = [
            "type": "stream", "id": "n0", "server": true, "addr": ["type": "unix", "path": peer],
        ]
        try guest.qmp.execute("netdev_add", back)
        #expect(refusal { try guest.qmp.execute("netdev_add", back) } == "Duplicate ID 'n0' for netdev")
        try guest.qmp.execute("device_add", ["driver": "virtio-net-pci", "bus": "rp0", "id": "c0", "netdev": "n0"])
        try update(guest)
        #expect(try plugged(guest.qmp).sorted() == ["c0", "c1"])
        // A card of the command line goes, and the address of the other stays what it is.
        try guest.qmp.execute("device_del", ["id": "c1"])
        // Its slot is on, and this guest does not answer.
        #expect(
            refusal { try guest.qmp.execute("device_del", ["id": "c1"]) }
                == "Device c1 is already in the process of unplug")
        #expect(refusal { try guest.qmp.execute("netdev_del", ["id": "n0"]) } == "netdev 'n0' is in use")
        try guest.qmp.execute("device_del", ["id": "c0"])
        try deleted(guest.qmp, "c0")
        try guest.qmp.execute("netdev_del", ["id": "n0"])
        #expect(!FileManager.default.fileExists(atPath: peer))
        try update(guest)
        #expect(try plugged(guest.qmp) == ["c1"])
        try guest.qmp.execute("netdev_add", back)
        #expect(FileManager.default.fileExists(atPath: peer))
    }

    /// The labels of `query-chardev`, but for those of monitor and serial port.
    private func chardevs(_ qmp: QMPClient) throws -> [String] {
        let list = try qmp.execute("query-chardev") as? [[String: Any]] ?? []
        return list.compactMap { $0["label"] as? String }.filter { $0.hasPrefix("x") }
    }

    @Test func chardevsComeStayOverUpdatesAndGo() throws {
        let directory = try TemporaryDirectory()
        let guest = try guest(["-chardev", "file,id=x0,path=\(directory.file("x0"))"])
        defer { _ = try? guest.qmp.execute("quit") }
        func add(_ id: String, _ type: String, _ data: [String: Any]) throws -> Any {
            try guest.qmp.execute("chardev-add", ["id": id, "backend": ["type": type, "data": data]])
        }
        let socket: [String: Any] = ["addr": ["type": "unix", "data": ["path": directory.file("x1")]]]
        _ = try add("x1", "socket", socket)
        let terminal = try #require(try add("x2", "pty", [:]) as? [String: String])
        #expect(terminal["pty"]?.hasPrefix("/dev/pts/") == true)
        _ = try add("x3", "file", ["out": directory.file("x3")])
        try guest.qmp.execute("human-monitor-command", ["command-line": "chardev-add ringbuf,id=x4,size=4096"])
        _ = try guest.qmp.execute("ringbuf-write", ["device": "x4", "data": "kept"])
        let client = try StreamClient(socket: directory.file("x1"))
        for _ in 0..<2 {
            try update(guest)
            #expect(try chardevs(guest.qmp) == ["x0", "x1", "x2", "x3", "x4"])
        }
        client.poll()
        #expect(!client.isClosed)
        #expect(try guest.qmp.execute("ringbuf-read", ["device": "x4", "size": 4]) as? String == "kept")
        for id in ["x1", "x0"] { try guest.qmp.execute("chardev-remove", ["id": id]) }
        #expect(!FileManager.default.fileExists(atPath: directory.file("x1")))
        try eventually("the client's connection ends") {
            client.poll()
            return client.isClosed
        }
        try update(guest)
        #expect(try chardevs(guest.qmp) == ["x2", "x3", "x4"])
        // The name is free for another kind, in whichever VMM.
        _ = try add("x1", "null", [:])
        try update(guest)
        #expect(try chardevs(guest.qmp) == ["x2", "x3", "x4", "x1"])
    }

    @Test func chardevsThatCannotBeAddedAreRefusedAsInQEMU() throws {
        let directory = try TemporaryDirectory()
        let guest = try guest([
            "-chardev", "null,id=x0", "-device", "virtio-serial-pci,id=s", "-device",
            "virtserialport,chardev=x0,id=p,bus=s.0",
        ])
        defer { _ = try? guest.qmp.execute("quit") }
        func add(_ id: String, _ type: String, _ data: [String: Any] = [:]) -> String {
            refusal { try guest.qmp.execute("chardev-add", ["id": id, "backend": ["type": type, "data": data]]) }
        }
        #expect(add("x0", "null") == "Duplicate ID 'x0' for chardev")
        #expect(add("x1", "vc") == "Parameter 'backend.type' does not accept value 'vc'")
        #expect(add("x1", "file") == "Parameter 'out' is missing")
        #expect(add("x1", "null", ["colour": "red"]) == "Parameter 'colour' is unexpected")
        #expect(add("x1", "file", ["out": directory.file("no/such")]).contains("no/such"))
        let place: [String: Any] = ["type": "unix", "data": ["path": directory.file("x1")]]
        #expect(add("x1", "socket", ["addr": place, "wait": true]).contains("cannot wait for a client"))
        #expect(add("x1", "socket", ["addr": place, "server": false]).contains("Failed to connect"))
        #expect(
            add("x1", "socket", ["addr": ["type": "fd", "data": ["str": "gone"]]])
                == "File descriptor named 'gone' has not been found")
        #expect(
            add("x1", "socket", ["addr": ["type": "vsock"]]) == "Parameter 'addr.type' does not accept value 'vsock'")
        #expect(
            refusal {
                try guest.qmp.execute("human-monitor-command", ["command-line": "chardev-add null,id=x1,mux=on"])
            }
                == "accepted")
        #expect(try chardevs(guest.qmp) == ["x0"])
        #expect(refusal { try guest.qmp.execute("chardev-remove", ["id": "x1"]) } == "Chardev 'x1' not found")
        #expect(refusal { try guest.qmp.execute("chardev-remove", ["id": "x0"]) } == "Chardev 'x0' is busy")
        try guest.qmp.execute("device_del", ["id": "p"])
        try deleted(guest.qmp, "p")
        try guest.qmp.execute("chardev-remove", ["id": "x0"])
    }

    /// A controller comes, and devices on its bus; one of the command line's goes, and those after it stay what they are.
    @Test func controllersComeWithWhatIsOnTheirBuses() throws {
        let directory = try TemporaryDirectory()
        var disks: [String] = []
        for name in ["n0", "n1", "n2"] {
            let image = try directory.writeSparse(name, size: 1 << 20)
            disks += ["-blockdev", "driver=file,node-name=\(name),filename=\(image)"]
        }
        let guest = try guest(
            disks + [
                "-device", "virtio-scsi-pci,id=cold", "-device", "scsi-hd,drive=n0,id=d0", "-device",
                "scsi-hd,drive=n1,id=d1", "-device", "virtio-serial-pci,id=lines", "-device",
                "virtserialport,name=a,id=a",
                "-device", "virtserialport,name=b,id=b",
            ])
        defer { _ = try? guest.qmp.execute("quit") }
        func add(_ device: [String: Any]) throws { try guest.qmp.execute("device_add", device) }
        try guest.qmp.execute("chardev-add", ["id": "x", "backend": ["type": "null", "data": [:]]])
        try add(["driver": "virtio-serial-pci", "bus": "rp0", "id": "s"])
        try add(["driver": "virtserialport", "bus": "s.0", "id": "p", "chardev": "x", "name": "late"])
        try add(["driver": "virtio-scsi-pci", "bus": "rp1", "id": "c"])
        try add(["driver": "scsi-hd", "bus": "c.0", "id": "d2", "drive": "n2"])
        for id in ["d0", "a"] {
            try guest.qmp.execute("device_del", ["id": id])
            try deleted(guest.qmp, id)
        }
        for _ in 0..<2 { try update(guest) }
        #expect(try plugged(guest.qmp).sorted() == ["c", "cold", "lines", "s"])
        #expect(
            refusal { try add(["driver": "scsi-hd", "id": "again", "drive": "n1"]) }
                == "Drive 'n1' is already in use by another device")
        // With a bus goes what is on it.
        for (bus, child) in [("s", "p"), ("c", "d2")] {
            try guest.qmp.execute("device_del", ["id": bus])
            try deleted(guest.qmp, child)
            try deleted(guest.qmp, bus)
        }
        try guest.qmp.execute("chardev-remove", ["id": "x"])
        try guest.qmp.execute("blockdev-del", ["node-name": "n2"])
        try guest.qmp.execute("blockdev-del", ["node-name": "n0"])
        try update(guest)
        #expect(try plugged(guest.qmp).sorted() == ["cold", "lines"])
        try add(["driver": "virtio-balloon-pci", "bus": "rp0", "id": "air"])
        try update(guest)
        #expect(try guest.qmp.execute("query-balloon") as? [String: Int] == ["actual": 16 << 20])
        #expect(
            refusal { try add(["driver": "virtio-balloon-pci", "bus": "rp1"]) }
                == "Only one balloon device is supported")
        try guest.qmp.execute("device_del", ["id": "air"])
        try deleted(guest.qmp, "air")
        #expect(refusal { try guest.qmp.execute("query-balloon") }.contains("No balloon device"))
    }

    @Test func whatCannotBePluggedLeavesEverythingAsItWas() throws {
        let guest = try guest(["-device", "virtio-rng-pci,id=fixed", "-device", "virtio-rng-pci,bus=rp1,id=there"])
        defer { _ = try? guest.qmp.execute("quit") }
        let before = try guest.qmp.execute("human-monitor-command", ["command-line": "info pci"]) as? String
        func add(_ arguments: [String: Any]) -> String { refusal { try guest.qmp.execute("device_add", arguments) } }
        #expect(add(["driver": "virtio-rng-pci", "id": "x"]) == "Bus 'pcie.0' does not support hotplugging")
        #expect(add(["driver": "virtio-rng-pci", "bus": "rp9"]) == "Bus 'rp9' not found")
        #expect(
            add(["driver": "virtio-rng-pci", "bus": "rp1"])
                == "PCI: no slot/function available for virtio-rng-pci, all in use or reserved")
        #expect(
            add(["driver": "virtio-rng-pci", "bus": "rp0", "addr": "1"])
                == "PCI: slot 1 is not valid for virtio-rng-pci, parent device only allows plugging into slot 0.")
        #expect(
            add(["driver": "virtio-rng-pci", "bus": "rp0", "colour": "red"])
                == "Property 'virtio-rng-pci.colour' not found")
        #expect(add(["driver": "nvme"]) == "'nvme' is not a valid device model name")
        #expect(add(["driver": "virtio-rng-pci", "bus": "rp0", "id": "there"]) == "Duplicate ID 'there' for device")
        #expect(add(["driver": "i6300esb", "bus": "rp0"]) == "Device 'i6300esb' does not support hotplugging")
        #expect(add(["driver": "pcie-root-port"]) == "Device 'pcie-root-port' does not support hotplugging")
        #expect(add(["bus": "rp0"]) == "Parameter 'driver' is missing")
        #expect(
            refusal { try guest.qmp.execute("device_del", ["id": "fixed"]) }
                == "Bus 'pcie.0' does not support hotplugging")
        #expect(refusal { try guest.qmp.execute("device_del", ["id": "nobody"]) } == "Device 'nobody' not found")
        #expect(
            refusal { try guest.qmp.execute("netdev_add", ["type": "user", "id": "n"]) }
                == "netdev of type 'user' cannot be added while the machine exists")
        #expect(
            refusal {
                try guest.qmp.execute("object-add", ["qom-type": "memory-backend-ram", "id": "m", "size": 4096])
            }
            .contains("cannot be added while the machine exists"))
        // Its place in the order of booting is free again.
        let image = try guest.directory.writeSparse("image", size: 1 << 20)
        try guest.qmp.execute("blockdev-add", ["driver": "file", "node-name": "n0", "filename": image])
        let disk: [String: Any] = ["driver": "virtio-blk-pci", "drive": "n0", "bootindex": 3]
        for _ in 0..<2 { #expect(add(disk.merging(["bus": "rp9"]) { $1 }) == "Bus 'rp9' not found") }
        #expect(try guest.qmp.execute("human-monitor-command", ["command-line": "info pci"]) as? String == before)
        #expect(add(disk.merging(["bus": "rp0", "id": "x"]) { $1 }) == "accepted")
        try update(guest)
    }

    @Test func nothingIsPluggedDuringAnUpdate() throws {
        let directory = try TemporaryDirectory()
        let second = directory.file("second")
        let guest = try guest(["-qmp", "unix:\(second),server=on,wait=off"])
        defer { _ = try? guest.qmp.execute("quit") }
        let other = try QMPClient(path: second, of: guest.process)
        try guest.updateToWhatHangs(timeout: 2000)
        // Two clients, one of which has asked for the update.
        let text = refusal { try other.execute("device_add", ["driver": "virtio-rng-pci", "bus": "rp0", "id": "e0"]) }
        #expect(text == "an update is under way")
        #expect(refusal { try other.execute("device_del", ["id": "e0"]) } == "an update is under way")
        _ = try other.waitForEvent("CPR_ROLLED_BACK")
        try other.execute("device_add", ["driver": "virtio-rng-pci", "bus": "rp0", "id": "e0"])
        #expect(try plugged(other) == ["e0"])
    }

    @Test func aCommandLineThatHasTheDeviceNowIsTaken() throws {
        let guest = try guest()
        defer { _ = try? guest.qmp.execute("quit") }
        try guest.qmp.execute("human-monitor-command", ["command-line": "device_add virtio-rng-pci,bus=rp0,id=e0"])
        try update(guest, guest.arguments + ["-device", "virtio-rng-pci,bus=rp0,id=e0"])
        #expect(try plugged(guest.qmp) == ["e0"])
        // Another device of that name is another machine.
        let image = try guest.directory.writeSparse("image", size: 1 << 20)
        let text = guest.update(
            guest.arguments + [
                "-blockdev", "driver=file,node-name=n0,filename=\(image)", "-device",
                "virtio-blk-pci,bus=rp0,id=e0,drive=n0",
            ])
        #expect(text.contains("rp0/00.0/virtio-blk"), "\(text)")
        try update(guest)
    }

    /// As in QEMU, the command line has what was plugged.
    @Test func aCheckpointNeedsADeviceAtTheSamePlace() throws {
        let directory = try TemporaryDirectory()
        func start(_ more: [String]) throws -> (ChildProcess, QMPClient) {
            let process = try ChildProcess(
                [
                    Products.baton, "-m", "16M", "-bios", "none", "-kernel", try CountingGuest.image(), "-nodefaults",
                    "-serial", "file:\(directory.file("serial"))", "-cpr-enable", "reboot", "-qmp",
                    "unix:\(directory.file("qmp")),server=on,wait=off", "-sandbox", "paths=\(directory.path)",
                ] + Self.ports + more)
            return (process, try QMPClient(path: directory.file("qmp"), of: process))
        }
        func end(_ vm: (process: ChildProcess, qmp: QMPClient)) throws {
            try vm.qmp.execute("quit")
            #expect(try vm.process.waitForExit() == .status(0))
        }
        let file = directory.file("checkpoint")
        let old = try start([])
        for line in ["object_add rng-builtin,id=r", "device_add virtio-rng-pci,bus=rp1,id=e0,rng=r"] {
            #expect(try old.1.execute("human-monitor-command", ["command-line": line]) as? String == "")
        }
        try old.1.execute("cpr-save", ["filename": file, "mode": "reboot"])
        try end(old)
        for (more, reason) in [
            ([], "has functions at 0x0 of bus 'rp1', this machine has no place"),
            (["-device", "virtio-rng-pci,bus=rp0"], "of bus 'rp0'"),
        ] {
            let other = try start(["-S"] + more)
            let text = refusal { try other.1.execute("cpr-load", ["filename": file, "mode": "reboot"]) }
            #expect(text.contains(reason), "\(text)")
            #expect(
                text.hasSuffix("is lacking here: -object rng-builtin,id=r -device virtio-rng-pci,bus=rp1,id=e0,rng=r"),
                "\(text)")
            try end(other)
        }
        // One part is enough to name the other.
        let half = try start(["-S", "-object", "rng-builtin,id=r"])
        let text = refusal { try half.1.execute("cpr-load", ["filename": file, "mode": "reboot"]) }
        #expect(text.hasSuffix("is lacking here: -device virtio-rng-pci,bus=rp1,id=e0,rng=r"), "\(text)")
        try end(half)
        let new = try start(["-S", "-object", "rng-builtin,id=r", "-device", "virtio-rng-pci,bus=rp1,id=e0,rng=r"])
        try new.1.execute("cpr-load", ["filename": file, "mode": "reboot"])
        #expect(try new.1.status() == "running")
        try end(new)
    }
}

/// What Debian's kernel does with devices that come and go.
@Suite(.enabled(if: debianFiles != nil, "Debian's kernel is neither in the cache nor to be downloaded"))
struct DebianHotPlugTests {
    /// Debian's riscv64 kernel has no pciehp: the shell does with a slot's control register what that does, and the kernel
    /// finds and forgets the devices.
    @Test(arguments: ["none", "aplic-imsic"]) func debianTakesDevicesAndLetsThemGo(_ aia: String) throws {
        let shell = try DebianShell(["-machine", "aia=\(aia)"])
        /// - Parameter control: two bytes of the slot's control register, in octal.
        func set(port: Int, _ control: String) -> String {
            "printf '\(control)' | dd of=/sys/bus/pci/devices/0000:00:0\(port).0/config bs=1 seek=112 conv=notrunc"
        }
        func turnOn(_ port: Int) throws {
            _ = try shell.run("\(set(port: port, #"\300\001"#)); echo 1 > /sys/bus/pci/rescan")
        }
        func letGo(_ port: Int) throws {
            _ = try shell.run(
                "echo 1 > /sys/bus/pci/devices/0000:0\(port):00.0/remove; \(set(port: port, #"\300\007"#))")
        }
        func deleted(_ id: String) throws {
            let data = try shell.qmp.waitForEvent("DEVICE_DELETED", by: .seconds(300))
            #expect(data["device"] as? String == id)
        }
        #expect(try shell.hasDevice("0x1044"), "what was there at the start")
        #expect(try !shell.hasDevice("0x1042"))
        let image = try shell.directory.writeSparse("image", size: 1 << 20)
        try shell.qmp.execute("blockdev-add", ["driver": "file", "node-name": "n0", "filename": image])
        try shell.qmp.execute("device_add", ["driver": "virtio-blk-pci", "bus": "rp0", "id": "d0", "drive": "n0"])
        try turnOn(1)
        #expect(try shell.hasDevice("0x1042"))
        try shell.update()
        #expect(try shell.hasDevice("0x1042"))
        try shell.qmp.execute("device_del", ["id": "d0"])
        try shell.update()
        #expect(try shell.hasDevice("0x1042"), "it is the guest's to let go")
        try letGo(1)
        try deleted("d0")
        try shell.qmp.execute("blockdev-del", ["node-name": "n0"])
        // One of the command line, which later command lines have still.
        try shell.qmp.execute("device_del", ["id": "cold"])
        try letGo(2)
        try deleted("cold")
        try shell.update()
        _ = try shell.run("echo 1 > /sys/bus/pci/rescan")
        #expect(try !shell.hasDevice("0x1044") && !shell.hasDevice("0x1042"))
        // And one comes where that was.
        try shell.qmp.execute("device_add", ["driver": "virtio-rng-pci", "bus": "rp1", "id": "cold"])
        try turnOn(2)
        try shell.update()
        #expect(try shell.hasDevice("0x1044"))
    }
}

/// A shell of Debian's installer on a socket.
private final class DebianShell {
    let directory: TemporaryDirectory
    let process: ChildProcess
    let qmp: QMPClient
    let arguments: [String]
    private let console: StreamClient

    init(_ extra: [String] = []) throws {
        directory = try TemporaryDirectory()
        let files = try #require(debianFiles)
        arguments =
            [
                Products.baton, "-M", "virt,memory-backend=ram", "-m", "512M",
                "-object", "memory-backend-memfd,id=ram,size=512M,share=on", "-nodefaults", "-cpr-enable", "restart",
                "-kernel", files.kernel, "-initrd", files.initrd,
                "-append", "console=ttyS0 rdinit=/bin/sh quiet",
                "-serial", "unix:\(directory.file("serial")),server=on,wait=off",
                "-qmp", "unix:\(directory.file("qmp")),server=on,wait=off", "-sandbox", "paths=\(directory.path)",
                "-device", "pcie-root-port,id=rp0,chassis=1", "-device", "pcie-root-port,id=rp1,chassis=2",
                "-device", "virtio-rng-pci,bus=rp1,id=cold",
            ] + extra
        process = try ChildProcess(arguments)
        qmp = try QMPClient(path: directory.file("qmp"), of: process)
        console = try StreamClient(socket: directory.file("serial"), patience: 600)
        try console.expect("# ")
        _ = try run("mount -t sysfs s /sys; mount -t proc p /proc")
    }

    deinit { qmp.endVMM(startedAs: process) }

    private var count = 0
    /// What a command prints.
    func run(_ command: String) throws -> String {
        count += 1
        // As it is typed it is not yet what it prints.
        try console.send("\(command); echo en''d\(count)\n")
        return try console.expect("end\(count)")
    }

    /// Whether a virtio device is behind a port, by the kernel's word: its vendor and device.
    func hasDevice(_ id: String) throws -> Bool {
        try run("cat /sys/bus/pci/devices/*/device").contains(id)
    }
    func update() throws { try qmp.execute("cpr-update", ["argv": arguments]) }
}

/// A watchdog that the guest sets by its configuration space.
@Suite(.enabled(if: debianFiles != nil, "Debian's kernel is neither in the cache nor to be downloaded"))
struct WatchdogTests {
    @Test func whatAClientHasSetIsDoneByTheNextVMM() throws {
        let shell = try DebianShell(["-device", "i6300esb,addr=9", "-watchdog-action", "reset"])
        let config = "/sys/bus/pci/devices/0000:00:09.0/config"
        #expect(try shell.run("cat /sys/bus/pci/devices/0000:00:09.0/device").contains("0x25ab"))
        try shell.qmp.execute("watchdog-set-action", ["action": "pause"])
        // The faster clock, and on: two seconds.
        _ = try shell.run(
            #"printf '\004' | dd of=\#(config) bs=1 seek=96 conv=notrunc; printf '\002' | dd of=\#(config) bs=1 seek=104 conv=notrunc"#
        )
        try shell.update()
        #expect(try shell.qmp.waitForEvent("WATCHDOG") as? [String: String] == ["action": "pause"])
        #expect(try shell.qmp.status() == "watchdog")
        // A client may let it go on.
        try shell.qmp.execute("cont")
        _ = try shell.run("true")
        #expect(
            refusal { try shell.qmp.execute("watchdog-set-action", ["action": "bite"]) }
                == "Parameter 'action' does not accept value 'bite'")
    }
}

/// Kernel and initrd of Debian's installer, in the project's cache or downloaded into it; nil when they are not to be had.
private let debianFiles: (kernel: String, initrd: String)? = {
    let cache = "\(Products.repository)/.cache"
    guard
        (try? ChildProcess.run(["\(Products.directory)/baton-demo", "fetch", "--cache", cache], by: .seconds(600)))
            != nil
    else { return nil }
    let all = "\(cache)/debian-13-riscv64"
    let versions = (try? FileManager.default.contentsOfDirectory(atPath: all)) ?? []
    return versions.sorted { $0.compare($1, options: .numeric) == .orderedDescending }
        .map { ("\(all)/\($0)/linux", "\(all)/\($0)/initrd.gz") }
        .first { FileManager.default.fileExists(atPath: $0.0) && FileManager.default.fileExists(atPath: $0.1) }
}()
