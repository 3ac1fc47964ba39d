import Foundation
import TestSupport
import Testing

/// Command lines that people have for `qemu-system-riscv64`: each boots, or is refused by name with what comes nearest.
///
/// Behind each stand `-M virt -m 512M -nographic -kernel … -initrd … -append …` unless it has the option itself.
@Suite(.enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"))
struct CommandLineTests {
    enum Outcome: Sendable {
        case boots
        /// With words of the error and of its hint.
        case refused(String, String)
    }

    struct Line: Sendable, CustomTestStringConvertible {
        let name: String
        /// `DISK` is a raw image, `QCOW2` one in qcow2, `DIR` a directory, `SOCKET`, `PIDFILE`, `PIPE`, `CONFIG` and
        /// `FIRMWARE` files.
        let arguments: String
        let outcome: Outcome
        /// A program that it needs.
        var needs: String?

        init(_ name: String, _ arguments: String, _ outcome: Outcome = .boots, needs: String? = nil) {
            (self.name, self.arguments, self.outcome, self.needs) = (name, arguments, outcome, needs)
        }

        var testDescription: String { name }
    }

    private static let daemon = "qemu-storage-daemon"

    static let disks = [
        Line("disk", "-drive file=DISK,format=raw,if=none,id=d -device virtio-blk-device,drive=d"),
        Line("disk of a format to be found", "-drive file=DISK,if=none,id=d -device virtio-blk-device,drive=d"),
        Line("hda", "-hda DISK"), Line("cdrom", "-cdrom DISK"),
        Line("if=virtio", "-drive file=DISK,format=raw,if=virtio"),
        Line("cache and aio", "-drive file=DISK,format=raw,if=virtio,cache=none,aio=io_uring"),
        Line(
            "detect-zeroes", "-drive file=DISK,format=raw,if=virtio,cache=writeback,discard=unmap,detect-zeroes=unmap"),
        Line(
            "werror", "-drive file=DISK,format=raw,if=virtio,werror=enospc,rerror=stop"),
        Line(
            "blockdev",
            "-blockdev driver=file,node-name=f0,filename=DISK -blockdev driver=raw,node-name=d0,file=f0 "
                + "-device virtio-blk-pci,drive=d0,bootindex=1"),
        Line(
            "blockdev in JSON",
            #"-blockdev {"driver":"raw","node-name":"d0","file":{"driver":"file","#
                + #""filename":"DISK","locking":"auto"}} -device virtio-blk-pci,drive=d0"#),
        Line("qcow2", "-drive file=QCOW2,format=qcow2,if=virtio", needs: daemon),
        Line("snapshot", "-drive file=QCOW2,format=qcow2,if=virtio -snapshot", needs: daemon),
        Line(
            "iothread",
            "-object iothread,id=io0 -drive file=DISK,format=raw,if=none,id=d "
                + "-device virtio-blk-pci,drive=d,iothread=io0,num-queues=2"),
        Line(
            "scsi",
            "-device virtio-scsi-pci,id=s -drive file=DISK,format=raw,if=none,id=d "
                + "-device scsi-hd,drive=d,bus=s.0"),
        Line(
            "protocol", "-drive file=nbd://127.0.0.1/x,format=raw,if=virtio",
            .refused("Unknown protocol 'nbd'", "nbd-client")),
        Line(
            "driver", "-drive driver=qcow2,file.filename=QCOW2,if=virtio",
            .refused("Parameter 'file' is missing", "format=")),
        Line(
            "nvme", "-drive file=DISK,format=raw,if=none,id=d -device nvme,drive=d,serial=1",
            .refused("'nvme' is not a valid device model", "use: virtio-blk-pci")),
    ]

    static let networks = [
        Line("netdev user", "-netdev user,id=n0 -device virtio-net-device,netdev=n0", needs: "passt"),
        Line(
            "hostfwd", "-netdev user,id=n0,hostfwd=tcp:127.0.0.1:0-:22 -device virtio-net-pci,netdev=n0", needs: "passt"
        ),
        Line("nic user", "-nic user,model=virtio-net-pci", needs: "passt"),
        Line("nic user, no model", "-nic user,mac=52:54:00:00:00:01", needs: "passt"),
        Line("net nic, net user", "-net nic,model=virtio -net user", needs: "passt"),
        Line("nic none", "-nic none"), Line("net none", "-net none"),
        Line("netdev passt", "-netdev passt,id=n0 -device virtio-net-pci,netdev=n0", needs: "passt"),
        Line("nic e1000", "-nic user,model=e1000", .refused("Unsupported NIC model: e1000", "virtio-net-pci")),
        Line("two on a hub", "-net nic -net nic -net user", .refused("no hub", "-nic")),
        Line("net nic alone", "-net nic", .refused("-net nic needs a back end", "-nic user")),
        Line(
            "vhost-user", "-netdev vhost-user,id=n0,chardev=c0 -chardev socket,id=c0,path=SOCKET",
            .refused("SOCKET", "")),
    ]

    static let processors = [
        Line("rv64", "-cpu rv64"), Line("max", "-cpu max"),
        Line("rva22u64", "-cpu rva22u64"), Line("rva22s64", "-cpu rva22s64"),
        Line("rva23s64", "-cpu rva23s64", .refused("unable to find CPU model 'rva23s64'", "rv64")),
        Line("flags off", "-cpu rv64,sv57=off,v=off,h=off"),
        Line("zba off", "-cpu rv64,zba=off,zbb=off"),
        Line("flags on", "-cpu rv64,zicond=true,zacas=on,svpbmt=on,zfhmin=on"),
        Line("sv39 only", "-cpu rv64,sv48=off"),
        Line("v on", "-cpu rv64,v=on", .refused("'rv64-riscv-cpu.v=on' is not supported", "rva22s64")),
        Line("h on", "-cpu max,h=true", .refused("'max-riscv-cpu.h=on' is not supported", "software emulator")),
        Line("no such flag", "-cpu rv64,zzz=on", .refused("Property 'rv64-riscv-cpu.zzz' not found", "")),
        Line("4 harts", "-smp 4"), Line("16 harts", "-smp 16"),
        Line("topology", "-smp cpus=4,sockets=1,cores=2,threads=2"),
        Line("icount", "-icount shift=auto", .refused("-icount is not supported", "-rtc clock=vm")),
        Line("gdb", "-gdb tcp:127.0.0.1:0"), Line("gdb on a socket", "-gdb unix:SOCKET"), Line("no gdb", "-gdb none"),
    ]

    static let machines = [
        Line("type", "-machine type=virt"),
        Line("acpi", "-M virt,acpi=off"),
        Line("aclint", "-M virt,aclint=on", .refused("Invalid value 'on'", "use aclint=off")),
        Line("aia", "-M virt,aia=aplic-imsic"),
        Line("aia-guests", "-M virt,aia=aplic-imsic,aia-guests=1", .refused("AIA IMSIC guests", "no hypervisor")),
        Line("accel", "-M virt,accel=tcg"),
        Line(
            "pflash", "-M virt,pflash0=p0 -blockdev node-name=p0,driver=file,read-only=on,filename=FIRMWARE"),
        Line("data directory", "-L /usr/share/qemu"), Line("name", "-name guest=vm,debug-threads=on"),
        Line("smbios", "-smbios type=1,manufacturer=me -smbios type=11,value=one,value=two"),
        Line(
            "smbios of no type", "-smbios type=9,slot_designation=a",
            .refused("Don't know how to build fields for SMBIOS type 9", "file=")),
        Line("fw_cfg", "-fw_cfg name=opt/com.example/x,string=y"),
        Line("rtc", "-rtc base=utc,clock=host,driftfix=slew"), Line("local time", "-rtc base=localtime"),
        Line("boot order", "-boot order=c,menu=off,strict=on"),
        Line("boot menu", "-boot menu=on,splash-time=1000"),
        Line("global", "-global virtio-mmio.force-legacy=false"),
        Line("global of a device", "-global virtio-rng-pci.vectors=2 -device virtio-rng-pci"),
        Line(
            "legacy", "-global virtio-mmio.force-legacy=true",
            .refused("force-legacy=true is not supported", "virtio 1")),
        Line("overcommit", "-overcommit mem-lock=off,cpu-pm=off"),
        Line("memory lock", "-overcommit mem-lock=on", .refused("mem-lock=on is not supported", "prealloc=on")),
        Line("pidfile", "-pidfile PIDFILE"),
        Line("sandbox", "-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        Line("no sandbox", "-sandbox off"), Line("run-with", "-run-with async-teardown=off"),
    ]

    static let memory = [
        Line("slots", "-m 512M,slots=2,maxmem=2G"), Line("8 GiB", "-m 8G"),
        Line("less than there is", "-m 512M,slots=2,maxmem=256M", .refused("invalid value of maxmem", "")),
        Line("mem-path", "-m 16M -mem-path DIR -mem-prealloc"),
        Line(
            "numa",
            "-smp 2 -object memory-backend-ram,id=m0,size=256M -object memory-backend-ram,id=m1,size=256M "
                + "-numa node,nodeid=0,cpus=0,memdev=m0 -numa node,nodeid=1,cpus=1,memdev=m1"),
        Line(
            "numa with distances",
            "-smp 2 -object memory-backend-memfd,id=m0,size=128M -object memory-backend-memfd,id=m1,size=384M "
                + "-numa node,memdev=m0 -numa node,memdev=m1 -numa cpu,node-id=1,thread-id=0 "
                + "-numa cpu,node-id=0,thread-id=1 -numa dist,src=0,dst=1,val=20"),
        Line(
            "numa without memory", "-smp 2 -numa node,cpus=0 -numa node,cpus=1",
            .refused("total memory for NUMA nodes (0x0) should equal RAM size (0x20000000)", "")),
        Line(
            "host nodes",
            "-M virt,memory-backend=r -object memory-backend-ram,id=r,size=512M,host-nodes=0,policy=preferred"),
        Line(
            "no host nodes", "-object memory-backend-ram,id=r,size=512M,policy=bind",
            .refused("host-nodes must be set for policy bind", "")),
        Line(
            "hugetlb",
            "-M virt,memory-backend=ram0 -object "
                + "memory-backend-memfd,id=ram0,size=512M,share=on,hugetlb=on,hugetlbsize=8K",
            .refused("the host has no huge pages of 8192 bytes", "/sys/kernel/mm/hugepages")),
    ]

    static let devices = [
        Line("rng-random", "-object rng-random,filename=/dev/urandom,id=r -device virtio-rng-device,rng=r"),
        Line("rng-builtin", "-object rng-builtin,id=r -device virtio-rng-pci,rng=r"),
        Line(
            "rng-random of a file", "-object rng-random,filename=DISK,id=r",
            .refused("is not supported", "/dev/urandom")),
        Line("no rng", "-device virtio-rng-pci,rng=r", .refused("can't find value 'r'", "")),
        Line("usb", "-device qemu-xhci", .refused("'qemu-xhci' is not", "no USB")),
        Line("gpu", "-device virtio-gpu-pci", .refused("'virtio-gpu-pci' is not", "no display")),
        Line("vga", "-vga none"), Line("vga std", "-vga std", .refused("-vga std is not supported", "-vga none")),
        Line("keyboard", "-device virtio-keyboard-device", .refused("'virtio-keyboard-device' is not", "no display")),
        Line(
            "virtfs", "-virtfs local,path=DIR,mount_tag=host0,security_model=none,id=host0",
            .refused("-virtfs is not supported", "vhost-user-fs-pci")),
        Line("balloon", "-device virtio-balloon-pci,free-page-reporting=on,deflate-on-oom=on"),
        Line(
            "guest agent",
            "-device virtio-serial-pci -chardev socket,id=c0,path=SOCKET,server=on,wait=off "
                + "-device virtserialport,chardev=c0,name=org.qemu.guest_agent.0"),
        Line(
            "vsock", "-device vhost-vsock-pci,guest-cid=3",
            access("/dev/vhost-vsock", R_OK | W_OK) == 0
                ? .boots : .refused("vhost-vsock: failed to open vhost device", "vhost")),
        Line(
            "root port",
            "-device pcie-root-port,id=rp0,chassis=1,slot=2,port=3,io-reserve=4096,mem-reserve=1M,bus=pcie.0,addr=3 "
                + "-device virtio-rng-pci,bus=rp0"),
        Line(
            "two of a slot", "-device pcie-root-port,id=rp0 -device pcie-root-port,id=rp1",
            .refused("Can't add chassis slot", "chassis=")),
        Line(
            "two in a root port",
            "-device pcie-root-port,id=rp0 -device virtio-rng-pci,bus=rp0 -device virtio-rng-pci,bus=rp0",
            .refused("no slot/function available", "")),
        Line("watchdog", "-device i6300esb -watchdog-action reset"),
        Line(
            "actions", "-device i6300esb -action reboot=shutdown,shutdown=pause,panic=exit-failure,watchdog=inject-nmi"
        ),
        Line("no such action", "-action panic=run", .refused("Parameter 'panic' does not accept value 'run'", "")),
        Line("no such watchdog", "-watchdog-action nothing", .refused("does not accept value 'nothing'", "")),
        Line("pvpanic", "-device pvpanic-pci,events=1"),
    ]

    static let consoles = [
        Line("monitor on the terminal", "-serial mon:stdio"),
        Line("telnet", "-monitor telnet:127.0.0.1:0,server=on,wait=off"),
        Line(
            "telnet to somebody", "-monitor telnet:127.0.0.1:1",
            .refused("'telnet' option is for a TCP server", "server=on")),
        Line("udp", "-serial udp:127.0.0.1:9999"),
        Line("pipe", "-chardev pipe,id=p0,path=PIPE -serial chardev:p0"),
        Line("no pipe", "-serial pipe:DIR/none", .refused("Could not open", "none")),
        Line("QMP by TCP", "-qmp tcp:127.0.0.1:0,server=on,wait=off"),
        Line("times", "-msg timestamp=on"),
        Line("configuration file", "-readconfig CONFIG"),
        Line("to write one", "-writeconfig CONFIG", .refused("-writeconfig is not supported", "-readconfig")),
    ]

    static let all = disks + networks + processors + machines + memory + devices + consoles

    @Test("Command lines for QEMU", arguments: all.filter { $0.needs.map { Products.find($0) != nil } ?? true })
    func line(_ line: Line) throws {
        let directory = try TemporaryDirectory()
        try directory.writeSparse("disk", size: 4 << 20)
        try directory.writeSparse("firmware", size: 32 << 20)
        try directory.write("initrd", Data(count: 512))
        if line.arguments.contains("QCOW2") {
            try ChildProcess.run(["qemu-img", "create", "-q", "-f", "qcow2", directory.file("qcow2"), "4M"])
        }
        try directory.write(
            "config",
            """
            # qemu config file
            [machine]
              type = "virt"
            [memory]
              size = "512"
            [object "r"]
              qom-type = "rng-random"
              filename = "/dev/urandom"
            [device "rng0"]
              driver = "virtio-rng-pci"
              rng = "r"
            """)
        for way in ["in", "out"] where line.arguments.contains("PIPE") {
            try #require(mkfifo(directory.file("pipe.\(way)"), 0o600) == 0)
        }
        var words = line.arguments.split(separator: " ").map(String.init)
        let places = [
            "QCOW2": "qcow2", "DISK": "disk", "SOCKET": "socket", "PIDFILE": "pidfile", "PIPE": "pipe",
            "CONFIG": "config",
            "FIRMWARE": "firmware",
        ]
        for (word, file) in places.sorted(by: { $0.key > $1.key }) {
            words = words.map { $0.replacingOccurrences(of: word, with: directory.file(file)) }
        }
        words = words.map { $0.replacingOccurrences(of: "DIR", with: directory.path) }
        for option in [
            ["-M", "virt"], ["-m", "512M"], ["-kernel", try CountingGuest.image()],
            ["-initrd", directory.file("initrd")], ["-append", "console=ttyS0"],
        ] where !words.contains(option[0]) && !(option[0] == "-M" && words.contains("-machine")) { words += option }
        words += [
            "-nographic", "-bios", "none", "-qmp", "unix:\(directory.file("qmp")),server=on,wait=off", "-sandbox",
            "paths=\(directory.path)",
        ]
        let vmm = try ChildProcess([Products.baton] + words)
        switch line.outcome {
        case .refused(let text, let hint):
            #expect(try vmm.waitForExit() == .status(1), "\(vmm.report)")
            #expect(
                vmm.errors.contains(text.replacingOccurrences(of: "SOCKET", with: directory.file("socket"))),
                "\(vmm.errors)")
            #expect(hint.isEmpty || vmm.errors.contains(hint), "\(vmm.errors)")
        case .boots:
            let qmp = try QMPClient(path: directory.file("qmp"), of: vmm)
            // The guest counts there.
            try eventually("the guest counts; \(vmm.report)") {
                let word = try qmp.execute("human-monitor-command", ["command-line": "xp /1gx 0x80400008"]) as? String
                guard let digits = word?.split(separator: "x").last?.prefix(16) else { return false }
                return UInt64(digits, radix: 16) ?? 0 > 0
            }
            try qmp.execute("quit")
            #expect(try vmm.waitForExit() == .status(0), "\(vmm.report)")
        }
    }
}
