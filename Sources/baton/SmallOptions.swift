import BatonRuntime
import Glibc

/// Options that say little of this VMM, or only what is so anyway: accepted where that is true, and refused where not.
enum SmallOptions {
    /// Carries them out.
    static func apply(_ invocation: Invocation, vm: VirtualMachine) throws(VMMError) {
        try invocation.each("overcommit", overcommit)
        if let adapter = invocation.last("vga"), adapter != "none" {
            throw VMMError("-vga \(adapter) is not supported", hint: "There is no graphical display: use -vga none.")
        }
    }

    /// `-boot`. Neither machine has an order of drives by letters, as QEMU's have not: firmware looks at the disks itself.
    /// - Returns: whether firmware shows its menu, and how many milliseconds it waits for somebody to ask for that.
    static func bootMenu(_ invocation: Invocation) throws(VMMError) -> (isOn: Bool, wait: UInt16?) {
        var menu: (isOn: Bool, wait: UInt16?) = (false, nil)
        try invocation.each("boot") { text throws(VMMError) in
            let options = try KeyValueOptions(text, impliedKey: "order")
            for key in ["order", "once"] {
                guard let letters = try options.string(key) else { continue }
                if let letter = letters.first(where: { !("a"..."p").contains($0) }) {
                    throw VMMError("Invalid boot device for PC: '\(letter)'")
                }
            }
            menu.isOn = try options.bool("menu") ?? menu.isOn
            menu.wait = try options.number("splash-time", in: 0...0xffff).map { UInt16($0) } ?? menu.wait
            _ = try options.bool("strict")
            for key in ["splash", "reboot-timeout"] where options.has(key) {
                throw VMMError("-boot \(key)= is not supported", hint: "It is for graphical firmware of PCs.")
            }
            try options.finish()
        }
        return menu
    }

    private static func overcommit(_ text: String) throws(VMMError) {
        let options = try KeyValueOptions(text)
        if let lock = try options.string("mem-lock"), lock != "off" {
            throw VMMError(
                "-overcommit mem-lock=\(lock) is not supported",
                hint: "Use -object memory-backend-memfd,prealloc=on, and a host without swap for it.")
        }
        if try options.bool("cpu-pm") ?? false {
            throw VMMError(
                "-overcommit cpu-pm=on is not supported", hint: "Give the CPUs' threads processors of their own.")
        }
        try options.finish()
    }

    /// `-L`: directories to look for firmware in that is given by its name alone.
    static func firmware(_ argument: String?, _ directories: [String]) -> MachineFirmware {
        let firmware = MachineFirmware(argument: argument)
        guard let name = firmware.path, !name.contains("/"), access(name, R_OK) != 0 else { return firmware }
        let paths = directories.map { directory in "\(directory)/\(name)" }
        for path in paths where access(path, R_OK) == 0 { return .file(path) }
        return firmware
    }

    /// `-rtc base=`.
    /// - Returns: nanoseconds that the guest's time of day is ahead of UTC.
    static func zone(_ base: String?) throws(VMMError) -> Int64 {
        switch base {
        case nil, "utc": return 0
        case "localtime":
            var now = time(nil)
            var local = tm()
            localtime_r(&now, &local)
            return Int64(local.tm_gmtoff) * 1_000_000_000
        case let other?:
            throw VMMError("-rtc base=\(other) is not supported", hint: "Use base=utc or base=localtime.")
        }
    }
}

/// `-global DRIVER.PROPERTY=VALUE`: what devices of a model have unless their own option says otherwise.
struct GlobalProperties {
    private let all: [(driver: String, property: String, value: String)]

    init(_ invocation: Invocation) throws(VMMError) {
        var all: [(driver: String, property: String, value: String)] = []
        try invocation.each("global") { text throws(VMMError) in
            let global = try GlobalProperties.parse(text)
            // Of each virtio-mmio slot: whether it is of the time before virtio 1.
            guard global.driver != "virtio-mmio" else {
                guard global.property == "force-legacy", ["false", "off", "no", "n"].contains(global.value) else {
                    throw VMMError("-global \(text) is not supported", hint: "virtio-mmio is that of virtio 1.")
                }
                return
            }
            all.append(global)
        }
        self.all = all
    }

    private static func parse(_ text: String) throws(VMMError) -> (driver: String, property: String, value: String) {
        if let dot = text.firstIndex(of: "."), let equals = text[dot...].firstIndex(of: "="),
            !text[..<dot].contains("=")
        {
            return (
                String(text[..<dot]), String(text[text.index(after: dot)..<equals]),
                String(text[text.index(after: equals)...])
            )
        }
        let options = try KeyValueOptions(text)
        let global = (
            driver: try options.requiredString("driver"), property: try options.requiredString("property"),
            value: try options.requiredString("value")
        )
        try options.finish()
        return global
    }

    /// Gives a `-device` what it does not say itself.
    func apply(to options: KeyValueOptions) throws(VMMError) {
        guard !all.isEmpty else { return }
        let driver = try options.string("driver")
        for global in all where global.driver == driver && !options.has(global.property) {
            options.set(global.property, global.value)
        }
    }
}
