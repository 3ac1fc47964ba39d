import BatonRuntime

/// `-netdev user`: QEMU's options, carried out by `passt`. The guest's network is the one that QEMU's users know: the guest
/// is 10.0.2.15, the host 10.0.2.2, the name server 10.0.2.3.
enum UserNetOptions {
    /// What passt cannot do, with what comes nearest.
    private static let refused: KeyValuePairs = [
        "guestfwd": "the host itself is the gateway's address (10.0.2.2 unless host= says otherwise)",
        "tftp": "give the guest its kernel with -kernel, or a directory with -device vhost-user-fs-pci",
        "tftp-server-name": "give the guest its kernel with -kernel",
        "bootfile": "give the guest its kernel with -kernel",
        "smb": "give the guest a directory with -device vhost-user-fs-pci",
        "smbserver": "give the guest a directory with -device vhost-user-fs-pci",
        "hostname": "name the guest inside, or run a DHCP server on a bridge with -netdev tap",
        "domainname": "use dnssearch=",
        "ipv6-net": "the guest has the host's own IPv6 prefix; ipv6=off leaves IPv6 out",
        "ipv6-prefix": "the guest has the host's own IPv6 prefix; ipv6=off leaves IPv6 out",
        "ipv6-prefixlen": "the guest has the host's own IPv6 prefix; ipv6=off leaves IPv6 out",
        "ipv6-host": "the guest has the host's own IPv6 gateway; ipv6=off leaves IPv6 out",
    ]

    static let properties = [
        DeviceProperty("ipv4", "bool", "off: IPv6 only"), DeviceProperty("ipv6", "bool", "off: IPv4 only"),
        DeviceProperty("net", "str", "ADDRESS[/MASK], the guest's network: 10.0.2.0/24"),
        DeviceProperty("host", "str", "the host as the guest sees it: the second address, 10.0.2.2"),
        DeviceProperty("dhcpstart", "str", "the guest's address: the 15th, 10.0.2.15"),
        DeviceProperty("dns", "str", "the name server as the guest sees it: the third address, 10.0.2.3"),
        DeviceProperty("ipv6-dns", "str", "a name server that the guest is told of"),
        DeviceProperty("dnssearch", "str", "a domain to look names up in; may be repeated"),
        DeviceProperty("restrict", "bool", "on: the guest reaches nobody; not with hostfwd="),
        DeviceProperty("hostfwd", "str", "[tcp|udp]:[HOSTADDRESS]:HOSTPORT-[GUESTADDRESS]:GUESTPORT; may be repeated"),
    ]

    static func parse(_ options: KeyValueOptions) throws(VMMError) -> PasstCommand {
        for (key, instead) in refused where options.has(key) {
            throw VMMError(
                "netdev user: '\(key)' is not supported: the network is passt's, which has no such thing",
                hint: "Instead: \(instead).")
        }
        var command = PasstCommand()
        // To name one of them leaves the other out.
        let ipv4 = try options.bool("ipv4")
        let ipv6 = try options.bool("ipv6")
        let hasIPv4 = ipv4 ?? (ipv6 != true)
        let hasIPv6 = ipv6 ?? (ipv4 != true)
        guard hasIPv4 || hasIPv6 else { throw VMMError("netdev user: ipv4=off and ipv6=off leave no network") }
        if !hasIPv6 { command.options += ["--ipv4-only"] }
        if !hasIPv4 { command.options += ["--ipv6-only"] }
        let guest = try addresses(options, hasIPv4: hasIPv4, &command)
        if let server = try options.string("ipv6-dns") { command.options += ["--dns", server] }
        let domains = try list(options, "dnssearch")
        if !domains.isEmpty { command.options += ["--search", domains.joined(separator: " ")] }
        for rule in try list(options, "hostfwd") { command.forwards.append(try forward(rule, guest)) }
        if try options.bool("restrict") ?? false {
            guard command.forwards.isEmpty else {
                throw VMMError(
                    "netdev user: restrict=on and hostfwd= do not go together: passt isolates a guest in both directions",
                    hint: "Leave hostfwd= out, or restrict the guest with the host's firewall (-netdev tap).")
            }
            command.options += ["--no-tcp", "--no-udp", "--no-icmp"]
        }
        return command
    }

    /// A key that may be repeated; in JSON an array of `{"str": …}`.
    private static func list(_ options: KeyValueOptions, _ key: String) throws(VMMError) -> [String] {
        var values = try options.strings(key)
        while let element = options.under("\(key).\(values.count)") {
            values.append(try element.requiredString("str"))
            try element.finish()
        }
        return values
    }

    /// - Returns: the guest's address.
    private static func addresses(
        _ options: KeyValueOptions, hasIPv4: Bool, _ command: inout PasstCommand
    ) throws(VMMError) -> IPv4? {
        func address(_ key: String, else standard: IPv4) throws(VMMError) -> IPv4 {
            guard let text = try options.string(key) else { return standard }
            guard let address = IPv4(text) else {
                throw VMMError("netdev user: Parameter '\(key)' expects an IPv4 address, not '\(text)'")
            }
            return address
        }
        let text = try options.string("net") ?? "10.0.2.0/24"
        guard let net = IPv4.network(text) else {
            throw VMMError("netdev user: Parameter 'net' expects an IPv4 network such as 10.0.2.0/24, not '\(text)'")
        }
        func member(_ index: UInt32) -> IPv4 { IPv4(net.address.number & net.mask.number | index & ~net.mask.number) }
        let host = try address("host", else: member(2))
        let server = try address("dns", else: member(3))
        let guest = try address("dhcpstart", else: member(15))
        guard hasIPv4 else { return nil }
        let keys: KeyValuePairs = ["host": host, "dns": server, "dhcpstart": guest]
        for (key, address) in keys where address.number & net.mask.number != net.address.number & net.mask.number {
            throw VMMError("netdev user: \(key)=\(address.description) is not in the network \(text)")
        }
        guard host != guest, host != server, guest != server else {
            throw VMMError("netdev user: host, dns and dhcpstart must be three addresses")
        }
        command.options += ["--address", guest.description, "--netmask", net.mask.description]
        command.options += ["--gateway", host.description]
        command.options += ["--dns", server.description, "--dns-forward", server.description]
        return guest
    }

    /// `[tcp|udp]:[HOSTADDRESS]:HOSTPORT-[GUESTADDRESS]:GUESTPORT`.
    private static func forward(_ rule: String, _ guest: IPv4?) throws(VMMError) -> PasstCommand.Forward {
        func invalid(_ reason: String) -> VMMError {
            VMMError("netdev user: Invalid host forwarding rule '\(rule)' (\(reason))")
        }
        guard let colon = rule.firstIndex(of: ":") else { throw invalid("No protocol") }
        let kind = rule[..<colon]
        guard ["tcp", "udp", ""].contains(kind) else { throw invalid("Bad protocol name") }
        // A host's name may have dashes, and an IPv6 address colons.
        guard let dash = rule.lastIndex(of: "-"), colon < dash else { throw invalid("Bad host port separator") }
        let (host, hostPort) = split(rule[rule.index(after: colon)..<dash])
        guard let hostPort, let host else { throw invalid("Bad host port") }
        guard host.isEmpty || IPv4(host) != nil || host.contains(":") else { throw invalid("Bad host address") }
        let (target, guestPort) = split(rule[rule.index(after: dash)...])
        guard let guestPort, guestPort > 0 else { throw invalid("Bad guest port") }
        guard let target, target.isEmpty || IPv4(target) == guest else {
            throw invalid(
                "Bad guest address: passt has one guest, \(guest?.description ?? "which has no IPv4 address")")
        }
        return .init(isUDP: kind == "udp", host: host, hostPort: hostPort, guestPort: guestPort)
    }

    /// `ADDRESS:PORT`, with brackets around an IPv6 address.
    private static func split(_ text: Substring) -> (address: String?, port: UInt16?) {
        guard let colon = text.lastIndex(of: ":") else { return (nil, nil) }
        var address = text[..<colon]
        if address.hasPrefix("["), address.hasSuffix("]") { address = address.dropFirst().dropLast() }
        return (String(address), UInt16(text[text.index(after: colon)...]))
    }
}
