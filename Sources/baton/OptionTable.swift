/// One option of the command line.
struct OptionSpec {
    let name: String
    /// How `-help` shows the argument; nil for an option without one.
    let argument: String?
    let help: String
}

/// The options, in QEMU's spelling and the order of `-help`.
enum OptionTable {
    static let all: [OptionSpec] = [
        OptionSpec(name: "h", argument: nil, help: "display this help and exit"),
        OptionSpec(name: "help", argument: nil, help: "display this help and exit"),
        OptionSpec(name: "version", argument: nil, help: "display version information and exit"),
        OptionSpec(
            name: "machine", argument: "[type=]name[,prop=value...]",
            help: "the machine: virt; props: memory-backend=ID, dumpdtb=FILE, accel=tcg, mem-merge=on|off, "
                    + "dump-guest-core=on|off, aia=none|aplic|aplic-imsic, aux-ram-share=on|off"),
        OptionSpec(name: "M", argument: "...", help: "as -machine"),
        OptionSpec(name: "accel", argument: "name", help: "what runs the guest's instructions: tcg"),
        OptionSpec(name: "cpu", argument: "model", help: "the CPU model: rv64"),
        OptionSpec(name: "smp", argument: "[cpus=]n", help: "the number of harts, 1 to 8 (default 1)"),
        OptionSpec(name: "m", argument: "[size=]megs", help: "guest memory, in MiB or with a unit (default 128M)"),
        OptionSpec(name: "name", argument: "string", help: "the name of the guest"),
        OptionSpec(name: "uuid", argument: "uuid", help: "the UUID of the guest"),
        OptionSpec(name: "kernel", argument: "file", help: "the kernel: a flat image, ELF, or a Linux Image"),
        OptionSpec(name: "initrd", argument: "file", help: "the initial RAM disk"),
        OptionSpec(name: "append", argument: "cmdline", help: "the kernel's command line"),
        OptionSpec(
            name: "bios", argument: "file", help: "the firmware: default (built-in SBI), none, or a file for M-mode"),
        OptionSpec(name: "dtb", argument: "file", help: "a device tree to use instead of the machine's own"),
        OptionSpec(
            name: "drive", argument: "[file=file][,if=type][,...]",
            help: "a disk: file, format=raw, if=none|virtio|pflash, id, readonly, discard"),
        OptionSpec(
            name: "blockdev", argument: "[driver=]driver[,node-name=N][,...]",
            help: "a block node: driver=file|host_device|raw"),
        OptionSpec(name: "device", argument: "driver[,prop=value...]", help: "a device; '-device help' lists them"),
        OptionSpec(
            name: "netdev", argument: "type,id=str[,...]", help: "a network back end: socket, stream, dgram, tap"),
        OptionSpec(
            name: "object", argument: "type,id=str[,prop=value...]", help: "an object; '-object help' lists them"),
        OptionSpec(
            name: "chardev", argument: "backend,id=str[,...]",
            help: "a character device; '-chardev help' lists the back ends; "
                    + "reopen-on-cpr=on does not keep it over an update"),
        OptionSpec(name: "serial", argument: "dev", help: "where the serial port goes"),
        OptionSpec(name: "monitor", argument: "dev", help: "where the monitor (HMP) goes"),
        OptionSpec(name: "qmp", argument: "dev", help: "where a QMP monitor goes"),
        OptionSpec(name: "qmp-pretty", argument: "dev", help: "as -qmp, with pretty JSON"),
        OptionSpec(
            name: "mon", argument: "[chardev=]name[,mode=readline|control][,pretty=on]",
            help: "a monitor on a chardev"),
        OptionSpec(name: "nographic", argument: nil, help: "serial port and monitor on the terminal (the default)"),
        OptionSpec(name: "display", argument: "none", help: "accepted for QEMU's sake; there is no display"),
        OptionSpec(name: "nodefaults", argument: nil, help: "do not make default devices"),
        OptionSpec(name: "no-user-config", argument: nil, help: "accepted for QEMU's sake"),
        OptionSpec(name: "S", argument: nil, help: "do not start the guest; use 'cont'"),
        OptionSpec(
            name: "incoming", argument: "file:path|defer",
            help: "wait for a VM's state from a file, or from where migrate-incoming says"),
        OptionSpec(name: "no-reboot", argument: nil, help: "exit instead of rebooting"),
        OptionSpec(name: "no-shutdown", argument: nil, help: "stop instead of exiting when the guest powers off"),
        OptionSpec(name: "rtc", argument: "[base=utc][,clock=host|vm]", help: "the guest's clock"),
        OptionSpec(name: "pidfile", argument: "file", help: "write the PID to a file"),
        OptionSpec(name: "daemonize", argument: nil, help: "go to the background when the machine stands"),
        OptionSpec(
            name: "cpr-enable", argument: "mode[,mode...]", help: "enable CPR modes; '-cpr-enable help' lists them"),
        OptionSpec(
            name: "only-cpr-capable", argument: nil,
            help: "refuse whatever could not be updated in the enabled CPR modes"),
        OptionSpec(name: "module", argument: "path", help: "load a module; '-module help' lists those found"),
        OptionSpec(name: "d", argument: "item1,...", help: "log what happens; '-d help' lists the items"),
        OptionSpec(name: "D", argument: "file", help: "where the log goes (default: standard error)"),
        OptionSpec(name: "trace", argument: "[enable=]pattern", help: "log trace events"),
    ]

    static func find(_ name: String) -> OptionSpec? { all.first { $0.name == name } }

    /// The text of `-help`.
    static var help: String {
        var text = "usage: baton [options]\n\n"
        for option in all {
            let head = "-\(option.name)" + (option.argument.map { " \($0)" } ?? "")
            text += head.utf8.count < 24
                ? head + String(repeating: " ", count: 24 - head.utf8.count) + option.help + "\n"
                : head + "\n" + String(repeating: " ", count: 24) + option.help + "\n"
        }
        return text
    }
}
