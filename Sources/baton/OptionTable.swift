import BatonRuntime

/// One option of the command line.
struct OptionSpec {
    /// What `help` in the option's argument is.
    enum HelpArgument {
        /// A value like any other: a file's name.
        case none
        /// A question if it is all of the argument.
        case word
        /// A question wherever a key could be. The keys are those of every use; what depends on the first one's value
        /// is known elsewhere.
        case keys(implied: String?, [DeviceProperty])
    }

    let name: String
    /// How `-help` shows the argument; nil for an option without one.
    let argument: String?
    let summary: String
    let help: HelpArgument

    /// Whether the argument is made of keys and values, as a section of `-readconfig` is.
    var takesProperties: Bool {
        if case .keys = help { return true }
        return false
    }

    init(name: String, argument: String?, help summary: String, on help: HelpArgument = .none) {
        self.name = name
        self.argument = argument
        self.summary = summary
        self.help = help
    }
}

/// The options, in QEMU's spelling and the order of `-help`.
enum OptionTable {
    static let all: [OptionSpec] = [
        OptionSpec(name: "h", argument: nil, help: "display this help and exit"),
        OptionSpec(name: "help", argument: nil, help: "display this help and exit"),
        OptionSpec(name: "version", argument: nil, help: "display version information and exit"),
        OptionSpec(
            name: "machine", argument: "[type=]name[,prop=value...]",
            help: "the machine (default virt); props: memory-backend=ID, dumpdtb=FILE, accel=NAME[:NAME...], "
                + "mem-merge=on|off, dump-guest-core=on|off, aux-ram-share=on|off; more by -machine NAME,help",
            on: .keys(
                implied: "type",
                [
                    DeviceProperty("memory-backend", "str", "id of the -object that is main memory"),
                    DeviceProperty("dumpdtb", "str", "a file to write the device tree to"),
                    DeviceProperty("mem-merge", "bool", "whether equal pages may be merged"),
                    DeviceProperty("dump-guest-core", "bool", "whether guest memory is part of a core dump"),
                    DeviceProperty("aux-ram-share", "bool", "whether memory that no option names outlives the VMM"),
                    DeviceProperty("accel", "str", "what runs the guest's instructions, as kvm:tcg"),
                    DeviceProperty("kernel-irqchip", "bool", "on: interrupt controllers are those of KVM"),
                    DeviceProperty("kernel", "str", "as -kernel"),
                    DeviceProperty("initrd", "str", "as -initrd"),
                    DeviceProperty("append", "str", "as -append"),
                    DeviceProperty("dtb", "str", "as -dtb"),
                    DeviceProperty("firmware", "str", "as -bios"),
                    DeviceProperty("usb", "bool", "off"),
                ])),
        OptionSpec(name: "M", argument: "...", help: "as -machine"),
        OptionSpec(
            name: "accel", argument: "name", help: "what runs the guest's instructions; several are tried in turn",
            on: .keys(implied: "accel", [DeviceProperty("thread", "str", "accepted for QEMU's sake")])),
        OptionSpec(name: "enable-kvm", argument: nil, help: "as -accel kvm"),
        OptionSpec(
            name: "cpu", argument: "model", help: "the CPU model",
            on: .keys(implied: "model", [])),
        OptionSpec(
            name: "smp", argument: "[cpus=]n", help: "the number of CPUs (default 1)",
            on: .keys(
                implied: "cpus",
                [
                    DeviceProperty("cpus", "uint32", "the number of CPUs"),
                    DeviceProperty("sockets", "uint32", "sockets"),
                    DeviceProperty("cores", "uint32", "cores in a socket"),
                    DeviceProperty("threads", "uint32", "threads in a core"),
                    DeviceProperty("maxcpus", "uint32", "accepted for QEMU's sake"),
                    DeviceProperty("dies", "uint32", "1"),
                    DeviceProperty("clusters", "uint32", "1"),
                ])),
        OptionSpec(
            name: "m", argument: "[size=]megs", help: "guest memory, in MiB or with a unit (default 128M)",
            on: .keys(
                implied: "size",
                [
                    DeviceProperty("size", "size", "guest memory"),
                    DeviceProperty("slots", "uint64", "accepted for QEMU's sake"),
                    DeviceProperty("maxmem", "size", "accepted for QEMU's sake"),
                ])),
        OptionSpec(
            name: "numa", argument: "node[,...]",
            help: "the guest's NUMA nodes: node,nodeid=N,cpus=A-B,memdev=ID; cpu,node-id=N,thread-id=C; "
                + "dist,src=N,dst=M,val=V",
            on: .keys(
                implied: "type",
                [
                    DeviceProperty("type", "str", "node, cpu or dist"),
                    DeviceProperty("nodeid", "uint16", "of a node: its number"),
                    DeviceProperty("cpus", "uint16List", "of a node: a CPU or a range of them; may be repeated"),
                    DeviceProperty("memdev", "str", "of a node: id of the -object that is its memory"),
                    DeviceProperty("node-id", "int", "of a CPU: its node"),
                    DeviceProperty("thread-id", "int", "of a CPU: its index"),
                    DeviceProperty("src", "uint16", "of a distance: a node"),
                    DeviceProperty("dst", "uint16", "of a distance: a node"),
                    DeviceProperty("val", "uint8", "of a distance: 10 is a node's own"),
                ])),
        OptionSpec(name: "mem-path", argument: "path", help: "guest memory in a file there, or in a directory"),
        OptionSpec(name: "mem-prealloc", argument: nil, help: "all of guest memory's pages at once"),
        OptionSpec(
            name: "name", argument: "string", help: "the name of the guest",
            on: .keys(
                implied: "guest",
                [
                    DeviceProperty("guest", "str", "the name of the guest"),
                    DeviceProperty("process", "str", "accepted for QEMU's sake"),
                    DeviceProperty("debug-threads", "bool", "accepted for QEMU's sake"),
                ])),
        OptionSpec(name: "uuid", argument: "uuid", help: "the UUID of the guest"),
        OptionSpec(name: "kernel", argument: "file", help: "the kernel: a flat image, ELF, or a Linux Image"),
        OptionSpec(name: "initrd", argument: "file", help: "the initial RAM disk"),
        OptionSpec(name: "append", argument: "cmdline", help: "the kernel's command line"),
        OptionSpec(
            name: "bios", argument: "file", help: "the firmware: a file, default (on virt the built-in SBI) or none"),
        OptionSpec(
            name: "fw_cfg", argument: "[name=]name,file=file|string=text",
            help: "a file that the guest finds in the firmware configuration device",
            on: .keys(
                implied: "name",
                [
                    DeviceProperty("name", "str", "its name: opt/..."), DeviceProperty("file", "str", "what is in it"),
                    DeviceProperty("string", "str", "what is in it"),
                ])),
        OptionSpec(
            name: "smbios", argument: "type=N[,...] | file=file",
            help:
                "what the SMBIOS tables say, which UEFI gives to the guest: types 0 to 4, 8, 11 and 17, or a structure",
            on: .keys(
                implied: nil,
                [
                    DeviceProperty("file", "str", "a structure, with its strings"),
                    DeviceProperty("type", "uint8", "0 firmware, 1 system, 2 board, 3 chassis, 4 CPU, 17 memory"),
                    DeviceProperty("vendor", "str", "of type 0"), DeviceProperty("date", "str", "of type 0"),
                    DeviceProperty("release", "str", "of type 0: %d.%d"), DeviceProperty("uefi", "bool", "of type 0"),
                    DeviceProperty("manufacturer", "str", "of types 1, 2, 3, 4 and 17"),
                    DeviceProperty("product", "str", "of types 1 and 2"),
                    DeviceProperty("version", "str", "of types 0 to 4"),
                    DeviceProperty("serial", "str", "of types 1, 2, 3, 4 and 17"),
                    DeviceProperty("uuid", "str", "of type 1: as -uuid"),
                    DeviceProperty("sku", "str", "of types 1 and 3"), DeviceProperty("family", "str", "of type 1"),
                    DeviceProperty("asset", "str", "of types 2, 3, 4 and 17"),
                    DeviceProperty("location", "str", "of type 2"), DeviceProperty("sock_pfx", "str", "of type 4"),
                    DeviceProperty("part", "str", "of types 4 and 17"),
                    DeviceProperty("max-speed", "uint16", "of type 4, in MHz"),
                    DeviceProperty("current-speed", "uint16", "of type 4, in MHz"),
                    DeviceProperty("processor-family", "uint16", "of type 4"),
                    DeviceProperty("processor-id", "uint64", "of type 4"),
                    DeviceProperty("internal_reference", "str", "of type 8"),
                    DeviceProperty("external_reference", "str", "of type 8"),
                    DeviceProperty("connector_type", "uint8", "of type 8"),
                    DeviceProperty("port_type", "uint8", "of type 8"),
                    DeviceProperty("value", "str", "of type 11: a string; may be repeated"),
                    DeviceProperty("path", "str", "of type 11: a file with a string"),
                    DeviceProperty("loc_pfx", "str", "of type 17"), DeviceProperty("bank", "str", "of type 17"),
                    DeviceProperty("speed", "uint16", "of type 17, in MHz"),
                ])),
        OptionSpec(name: "dtb", argument: "file", help: "a device tree to use instead of the machine's own"),
        OptionSpec(
            name: "drive", argument: "[file=file][,if=type][,...]",
            help: "a disk: file, format=raw|qcow2|..., if=none|virtio|pflash, id, readonly, cache, aio, werror, rerror",
            on: .keys(
                implied: nil,
                [
                    DeviceProperty("file", "str", "the image: a regular file or a block device"),
                    DeviceProperty("format", "str", "raw, or one that qemu-storage-daemon knows; else found"),
                    DeviceProperty("if", "str", "none, virtio or pflash"),
                    DeviceProperty("id", "str", "its name"),
                    DeviceProperty("readonly", "bool", "whether it is only read"),
                    DeviceProperty("discard", "str", "unmap or ignore"),
                    DeviceProperty("file.locking", "str", "on, off or auto: whether others are kept off the image"),
                    DeviceProperty("unit", "uint32", "of pflash: 0 or 1"),
                    DeviceProperty("index", "uint32", "accepted for QEMU's sake"),
                    DeviceProperty("media", "str", "disk, or cdrom: a disk that is only read"),
                    DeviceProperty("cache", "str", "writeback (default), none, writethrough, directsync or unsafe"),
                    DeviceProperty("cache.writeback", "bool", "whether a flush is what makes data durable"),
                    DeviceProperty("cache.direct", "bool", "whether the host's page cache is passed by"),
                    DeviceProperty("cache.no-flush", "bool", "whether flushes are ignored"),
                    DeviceProperty("aio", "str", "threads, native or io_uring (default where the kernel lets it)"),
                    DeviceProperty("detect-zeroes", "str", "off, on or unmap"),
                    DeviceProperty("werror", "str", "report, ignore, enospc (default) or stop"),
                    DeviceProperty("rerror", "str", "report (default), ignore or stop"),
                    DeviceProperty("snapshot", "bool", "whether what is written goes with the VM"),
                ])),
        OptionSpec(name: "hda", argument: "file", help: "a disk, as -drive file=FILE,index=0"),
        OptionSpec(name: "hdb", argument: "file", help: "a disk, as -drive file=FILE,index=1"),
        OptionSpec(name: "hdc", argument: "file", help: "a disk, as -drive file=FILE,index=2"),
        OptionSpec(name: "hdd", argument: "file", help: "a disk, as -drive file=FILE,index=3"),
        OptionSpec(name: "cdrom", argument: "file", help: "a disk that is only read, as -drive file=FILE,media=cdrom"),
        OptionSpec(
            name: "snapshot", argument: nil, help: "what is written to the disks of -drive goes with the VM"),
        OptionSpec(
            name: "blockdev", argument: "[driver=]driver[,node-name=N][,...]",
            help: "a block node: driver=file|host_device|raw, or one that qemu-storage-daemon knows",
            on: .keys(
                implied: "driver",
                [
                    DeviceProperty("driver", "str", "file, host_device, raw, qcow2 and so on"),
                    DeviceProperty("node-name", "str", "its name"),
                    DeviceProperty("filename", "str", "of file and host_device: the image"),
                    DeviceProperty("file", "str", "of raw: a node's name, or file.driver, file.filename and so on"),
                    DeviceProperty("read-only", "bool", "whether it is only read"),
                    DeviceProperty("discard", "str", "unmap or ignore"),
                    DeviceProperty("locking", "str", "on, off or auto: whether others are kept off the image"),
                    DeviceProperty("aio", "str", "threads, native or io_uring (default where the kernel lets it)"),
                    DeviceProperty("cache.direct", "bool", "whether the host's page cache is passed by"),
                    DeviceProperty("cache.no-flush", "bool", "whether flushes are ignored"),
                    DeviceProperty("detect-zeroes", "str", "off, on or unmap"),
                    DeviceProperty("auto-read-only", "bool", "accepted for QEMU's sake"),
                ])),
        OptionSpec(
            name: "device", argument: "driver[,prop=value...]", help: "a device; '-device help' lists them",
            on: .keys(implied: "driver", [])),
        OptionSpec(
            name: "netdev", argument: "type,id=str[,...]",
            help: "a network back end: user, tap, passt, stream, dgram, socket, vhost-user",
            on: .keys(implied: "type", [])),
        OptionSpec(
            name: "nic", argument: "type[,model=virtio][,mac=addr][,...]",
            help: "a network card with its back end, as -netdev type; none (the default) makes nothing",
            on: .keys(implied: "type", [])),
        OptionSpec(
            name: "net", argument: "nic[,model=virtio][,macaddr=addr] | type[,...]",
            help: "the older form of -nic: a card, and a back end for it", on: .keys(implied: "type", [])),
        OptionSpec(
            name: "object", argument: "type,id=str[,prop=value...]", help: "an object; '-object help' lists them",
            on: .keys(implied: "qom-type", [])),
        OptionSpec(
            name: "chardev", argument: "backend,id=str[,...]",
            help: "a character device; '-chardev help' lists the back ends; "
                + "reopen-on-cpr=on does not keep it over an update",
            on: .keys(implied: "backend", [])),
        OptionSpec(name: "serial", argument: "dev", help: "where the serial port goes"),
        OptionSpec(name: "monitor", argument: "dev", help: "where the monitor (HMP) goes"),
        OptionSpec(name: "qmp", argument: "dev", help: "where a QMP monitor goes"),
        OptionSpec(name: "qmp-pretty", argument: "dev", help: "as -qmp, with pretty JSON"),
        OptionSpec(
            name: "mon", argument: "[chardev=]name[,mode=readline|control][,pretty=on]",
            help: "a monitor on a chardev",
            on: .keys(
                implied: "chardev",
                [
                    DeviceProperty("chardev", "str", "id of the -chardev"),
                    DeviceProperty("mode", "str", "readline or control"),
                    DeviceProperty("pretty", "bool", "whether JSON is for people to read"),
                ])),
        OptionSpec(name: "nographic", argument: nil, help: "serial port and monitor on the terminal (the default)"),
        OptionSpec(
            name: "display", argument: "none", help: "accepted for QEMU's sake; there is no display",
            on: .word),
        OptionSpec(name: "vga", argument: "none", help: "accepted for QEMU's sake; there is no display", on: .word),
        OptionSpec(
            name: "boot", argument: "[order=drives][,menu=on|off][,splash-time=ms][,strict=on|off]",
            help: "whether firmware shows its menu; the rest is accepted for QEMU's sake: it looks at the disks itself",
            on: .keys(
                implied: "order",
                [
                    DeviceProperty("order", "str", "letters of drives"), DeviceProperty("once", "str", "the same"),
                    DeviceProperty("menu", "bool", "whether firmware shows its menu"),
                    DeviceProperty("splash-time", "uint16", "milliseconds that it waits for a key"),
                    DeviceProperty("strict", "bool", "on or off"),
                ])),
        OptionSpec(
            name: "global", argument: "driver.property=value",
            help: "a property of every device of a model that does not say otherwise",
            on: .keys(
                implied: nil,
                [
                    DeviceProperty("driver", "str", "the device's model"),
                    DeviceProperty("property", "str", "the property's name"),
                    DeviceProperty("value", "str", "its value"),
                ])),
        OptionSpec(
            name: "overcommit", argument: "[mem-lock=off][,cpu-pm=off]", help: "what is so anyway",
            on: .keys(
                implied: nil, [DeviceProperty("mem-lock", "str", "off"), DeviceProperty("cpu-pm", "bool", "off")])),
        OptionSpec(name: "L", argument: "path", help: "a directory where -bios finds firmware by its name"),
        OptionSpec(name: "nodefaults", argument: nil, help: "do not make default devices"),
        OptionSpec(
            name: "readconfig", argument: "file",
            help: "take options from a file: sections [option \"id\"] of lines key = \"value\""),
        OptionSpec(name: "no-user-config", argument: nil, help: "accepted for QEMU's sake"),
        OptionSpec(name: "S", argument: nil, help: "do not start the guest; use 'cont'"),
        OptionSpec(
            name: "gdb", argument: "dev",
            help: "wait for gdb's connection on a device as -monitor has it, such as tcp:127.0.0.1:1234 or unix:PATH"),
        OptionSpec(name: "s", argument: nil, help: "as -gdb tcp::1234"),
        OptionSpec(
            name: "incoming", argument: "file:path|defer",
            help: "wait for a VM's state from a file, or from where migrate-incoming says"),
        OptionSpec(name: "no-reboot", argument: nil, help: "exit instead of rebooting"),
        OptionSpec(name: "no-shutdown", argument: nil, help: "stop instead of exiting when the guest powers off"),
        OptionSpec(
            name: "action", argument: "event=action[,event=action...]",
            help: "what is done when the guest resets, powers off or panics, or its watchdog expires",
            on: .keys(
                implied: nil,
                [
                    DeviceProperty("reboot", "str", "reset (default), or shutdown as -no-reboot"),
                    DeviceProperty("shutdown", "str", "poweroff (default), or pause as -no-shutdown"),
                    DeviceProperty("panic", "str", "shutdown (default), exit-failure, pause or none"),
                    DeviceProperty(
                        "watchdog", "str",
                        "reset (default), shutdown, poweroff, pause, debug, none or inject-nmi"),
                ])),
        OptionSpec(
            name: "watchdog-action", argument: "reset|shutdown|poweroff|pause|debug|none|inject-nmi",
            help: "as -action watchdog=..."),
        OptionSpec(
            name: "rtc", argument: "[base=utc|localtime][,clock=host|vm]", help: "the guest's clock",
            on: .keys(
                implied: nil,
                [
                    DeviceProperty("base", "str", "utc or localtime"),
                    DeviceProperty("clock", "str", "host or vm"),
                    DeviceProperty("driftfix", "str", "accepted for QEMU's sake"),
                ])),
        OptionSpec(name: "pidfile", argument: "file", help: "write the PID to a file"),
        OptionSpec(
            name: "sandbox", argument: "on[,prop=value...]",
            help: "put the VM in a sandbox before its guest runs (default on, as far as the kernel can)",
            on: .keys(
                implied: "enable",
                [
                    DeviceProperty("enable", "bool", "on or off"),
                    DeviceProperty("obsolete", "str", "allow or deny (default): system calls that nobody needs"),
                    DeviceProperty(
                        "elevateprivileges", "str", "allow, deny (default) or children: to change users, capabilities"),
                    DeviceProperty(
                        "spawn", "str", "allow (default) or deny: to execute programs, and so updates but transfer"),
                    DeviceProperty(
                        "resourcecontrol", "str", "allow (default) or deny: to change priorities and affinities"),
                    DeviceProperty(
                        "paths", "str", "a directory for files and sockets that come later; may be repeated"),
                ])),
        OptionSpec(name: "runas", argument: "user", help: "as -run-with user="),
        OptionSpec(
            name: "run-with", argument: "prop=value...", help: "become another user before the guest runs",
            on: .keys(
                implied: nil,
                [
                    DeviceProperty("user", "str", "a user's name, or UID:GID"),
                    DeviceProperty("chroot", "str", "a directory to be the root"),
                    DeviceProperty("async-teardown", "bool", "off"),
                    DeviceProperty("exit-with-parent", "bool", "off"),
                ])),
        OptionSpec(name: "daemonize", argument: nil, help: "go to the background when the machine stands"),
        OptionSpec(
            name: "cpr-enable", argument: "mode[,mode...]", help: "enable CPR modes; '-cpr-enable help' lists them",
            on: .word),
        OptionSpec(
            name: "only-cpr-capable", argument: nil,
            help: "refuse whatever could not be updated in the enabled CPR modes"),
        OptionSpec(
            name: "module", argument: "path", help: "load a module; '-module help' lists those found",
            on: .word),
        OptionSpec(
            name: "metrics", argument: "dev",
            help: "where Prometheus finds figures: unix:PATH or tcp:HOST:PORT, on which HTTP is served"),
        OptionSpec(
            name: "msg", argument: "[timestamp=on|off][,guest-name=on|off]",
            help: "what messages and the log begin with: the time in UTC, the name of -name",
            on: .keys(
                implied: nil,
                [
                    DeviceProperty("timestamp", "bool", "whether each line has the time"),
                    DeviceProperty("guest-name", "bool", "whether each line has the guest's name"),
                ])),
        OptionSpec(
            name: "d", argument: "item1,...", help: "log what happens; '-d help' lists the items",
            on: .word),
        OptionSpec(name: "D", argument: "file", help: "where the log goes (default: standard error)"),
        OptionSpec(
            name: "trace", argument: "[enable=]pattern", help: "log trace events",
            on: .keys(
                implied: "enable",
                [
                    DeviceProperty("enable", "str", "a pattern"),
                    DeviceProperty("file", "str", "where the log goes"),
                ])),
    ]

    /// Options that stand for a `-drive`, with what goes behind the file.
    static let shortDrives = [
        "hda": "index=0,media=disk", "hdb": "index=1,media=disk", "hdc": "index=2,media=disk",
        "hdd": "index=3,media=disk", "cdrom": "index=2,media=cdrom",
    ]

    /// Places in `all`, so that a start copies no table.
    private static let places = Dictionary(uniqueKeysWithValues: all.indices.lazy.map { (all[$0].name, $0) })

    static func find(_ name: String) -> OptionSpec? { places[name].map { all[$0] } }

    /// The option's name, if a word of the command line is written as one: with one or two dashes before it.
    static func name(_ word: String) -> String? {
        word.hasPrefix("-") ? String(word.dropFirst(word.hasPrefix("--") ? 2 : 1)) : nil
    }

    /// Whether the word after this one of the command line is its argument.
    static func takesArgument(_ word: String) -> Bool { name(word).flatMap(find)?.argument != nil }

    /// The text of `-help`.
    static var help: String {
        var text = "usage: baton [options] [@file]\n\n"
        for option in all {
            let head = "-\(option.name)" + (option.argument.map { " \($0)" } ?? "")
            text +=
                head.utf8.count < 24
                ? head + String(repeating: " ", count: 24 - head.utf8.count) + option.summary + "\n"
                : head + "\n" + String(repeating: " ", count: 24) + option.summary + "\n"
        }
        return text + "\n@file stands for the options in a file: words as a shell has them, '#' begins a comment.\n"
    }
}
