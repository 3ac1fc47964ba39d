import BatonRuntime

/// `-netdev passt`: passt's own options, by the names that QEMU has for them.
enum PasstOptions {
    /// With a value each.
    private static let values: KeyValuePairs = [
        "mtu": "--mtu", "address": "--address", "netmask": "--netmask", "mac": "--mac-addr", "gateway": "--gateway",
        "interface": "--interface", "outbound": "--outbound", "outbound-if4": "--outbound-if4",
        "outbound-if6": "--outbound-if6", "dns": "--dns", "fqdn": "--fqdn",
        "map-host-loopback": "--map-host-loopback", "map-guest-addr": "--map-guest-addr",
        "dns-forward": "--dns-forward", "dns-host": "--dns-host",
    ]
    /// Which are there unless they are switched off.
    private static let switches: KeyValuePairs = [
        "dhcp-dns": "--no-dhcp-dns", "dhcp-search": "--no-dhcp-search", "tcp": "--no-tcp", "udp": "--no-udp",
        "icmp": "--no-icmp", "dhcp": "--no-dhcp", "ndp": "--no-ndp", "dhcpv6": "--no-dhcpv6", "ra": "--no-ra",
    ]
    /// Which may be repeated, in QEMU as arrays.
    private static let lists: KeyValuePairs = [
        "search": "--search", "tcp-ports": "--tcp-ports", "udp-ports": "--udp-ports", "param": "",
    ]

    static let properties: [DeviceProperty] =
        values.map { DeviceProperty($0.key, "str", "passt's \($0.value)") }
        + switches.map { DeviceProperty($0.key, "bool", "off: passt's \($0.value)") }
        + lists.map {
            DeviceProperty($0.key, "str", $0.value.isEmpty ? "any option of passt's" : "passt's \($0.value)")
        }
        + [
            DeviceProperty("ipv4", "bool", "off: passt's --ipv6-only"),
            DeviceProperty("ipv6", "bool", "off: passt's --ipv4-only"),
        ]

    static func parse(_ options: KeyValueOptions) throws(VMMError) -> PasstCommand {
        var command = PasstCommand()
        if try options.bool("vhost-user") ?? false {
            throw VMMError(
                "netdev passt: vhost-user=on is not supported",
                hint: "Start 'passt --vhost-user' yourself, and use -chardev socket with -netdev vhost-user.")
        }
        _ = try options.bool("quiet")
        for (key, option) in values { if let value = try options.string(key) { command.options += [option, value] } }
        for (key, option) in switches where try options.bool(key) == false { command.options += [option] }
        for (key, option) in lists {
            var elements = try options.strings(key)
            while let element = options.under("\(key).\(elements.count)") {
                elements.append(try element.requiredString("str"))
                try element.finish()
            }
            for element in elements { command.options += option.isEmpty ? [element] : [option, element] }
        }
        if try options.bool("ipv4") == false { command.options += ["--ipv6-only"] }
        if try options.bool("ipv6") == false { command.options += ["--ipv4-only"] }
        return command
    }
}
