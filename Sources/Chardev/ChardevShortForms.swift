import BatonRuntime

/// Short forms: the arguments of `-serial`, `-monitor` and `-qmp`.
extension ChardevFactory {
    /// What `-serial`, `-monitor` or `-qmp` stands for.
    public struct ShortForm {
        /// nil for `none`.
        public var chardev: Chardev?
        /// `mon:`: a monitor is to share the chardev.
        public var wantsMonitor = false
    }

    /// Carries out the argument of `-serial`, `-monitor` or `-qmp`: `none`,
    /// `null`, `stdio`, `pty`, `file:PATH`, `pipe:PATH`, `unix:PATH,…`, `tcp:HOST:PORT,…`, `telnet:HOST:PORT,…`,
    /// `udp:[HOST]:PORT[@[ADDRESS]:PORT]`, `ringbuf`, `mon:…`, `chardev:ID`.
    /// - Parameter id: of the new chardev: `serial0`, `compat_monitor0`.
    public static func makeShortForm(_ text: String, id: String, vm: VirtualMachine) throws(VMMError) -> ShortForm {
        if text == "none" { return ShortForm(chardev: nil) }
        if text.hasPrefix("chardev:") {
            let name = String(text.dropFirst(8))
            guard let chardev = vm.chardev(name) else { throw VMMError("chardev \"\(name)\" not found") }
            return ShortForm(chardev: chardev)
        }
        let monitor = text.hasPrefix("mon:")
        let rest = monitor ? String(text.dropFirst(4)) : text
        let options = try shortFormOptions(rest)
        options.set("id", id)
        if monitor {
            options.set("mux", "on")
            // Ctrl-C belongs to the guest; the monitor has Ctrl-A x.
            if rest == "stdio" { options.set("signal", "off") }
        }
        return ShortForm(chardev: try make(options, vm: vm), wantsMonitor: monitor)
    }

    /// `HOST:PORT`, with brackets around an IPv6 address.
    private static func setAddress(
        _ text: Substring, of kind: String, _ options: KeyValueOptions, _ hostKey: String, _ portKey: String
    ) throws(VMMError) {
        guard let colon = text.lastIndex(of: ":") else { throw VMMError("\(kind):\(text): expected HOST:PORT") }
        var host = text[..<colon]
        if host.hasPrefix("["), host.hasSuffix("]") { host = host.dropFirst().dropLast() }
        if !host.isEmpty || kind != "udp" { options.set(hostKey, String(host)) }
        options.set(portKey, String(text[text.index(after: colon)...]))
    }

    private static func shortFormOptions(_ text: String) throws(VMMError) -> KeyValueOptions {
        let options: KeyValueOptions
        if text.hasPrefix("file:") {
            options = try KeyValueOptions("")
            options.set("backend", "file")
            options.set("path", String(text.dropFirst(5)))
        } else if text.hasPrefix("unix:") {
            options = try KeyValueOptions(String(text.dropFirst(5)), impliedKey: "path")
            options.set("backend", "socket")
        } else if text.hasPrefix("pipe:") {
            options = try KeyValueOptions("")
            options.set("backend", "pipe")
            options.set("path", String(text.dropFirst(5)))
        } else if text.hasPrefix("udp:") {
            options = try KeyValueOptions(String(text.dropFirst(4)), impliedKey: "address")
            let ends = try options.requiredString("address").split(separator: "@", maxSplits: 1)
            try setAddress(ends.first ?? "", of: "udp", options, "host", "port")
            if ends.count == 2 { try setAddress(ends[1], of: "udp", options, "localaddr", "localport") }
            options.set("backend", "udp")
        } else if let kind = ["tcp", "telnet"].first(where: { text.hasPrefix("\($0):") }) {
            options = try KeyValueOptions(String(text.dropFirst(kind.utf8.count + 1)), impliedKey: "address")
            try setAddress(Substring(try options.requiredString("address")), of: kind, options, "host", "port")
            if kind == "telnet" { options.set("telnet", "on") }
            options.set("backend", "socket")
        } else {
            options = try KeyValueOptions(text, impliedKey: "backend")
        }
        return options
    }
}
