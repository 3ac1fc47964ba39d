import BatonRuntime

/// The options of `-netdev tap`.
struct TapConfiguration {
    static let maxQueues = 64

    /// The interface; nil when the kernel is to choose a name, and with descriptors.
    var interface: String?
    /// Open queues of an interface, which the command line names; the back end's.
    var descriptors: [Int32] = []
    var queues = 1
    /// Whether each frame has a virtio-net header before it; nil: as it comes.
    var hasHeader: Bool?
    /// Run with the interface's name as their argument.
    var script: String?
    var downScript: String?

    init(_ options: KeyValueOptions) throws(VMMError) {
        let one = try options.number("fd", in: 0...UInt64(Int32.max))
        let list = try options.string("fds")
        if let one { descriptors = [Int32(truncatingIfNeeded: one)] }
        if let list {
            guard one == nil else { throw VMMError("fd= and fds= are mutually exclusive") }
            descriptors = try TapConfiguration.numbers(list)
        }
        let others = ["ifname", "script", "downscript", "queues"] + (list == nil ? ["vnet_hdr"] : [])
        if !descriptors.isEmpty, others.contains(where: options.has) {
            // QEMU's words.
            throw VMMError(
                "ifname=, script=, downscript=, "
                    + (list == nil
                        ? "vnet_hdr=, helper=, queues=, fds=, and vhostfds= are invalid with fd="
                        : "helper=, queues=, and vhostfds= are invalid with fds="))
        }
        interface = try options.string("ifname")
        if let interface, !TapConfiguration.isName(interface) {
            throw VMMError(
                "ifname '\(interface)' is not an interface's name", hint: "At most 15 bytes, without '/' and spaces.")
        }
        queues = Int(try options.number("queues", in: 1...UInt64(TapConfiguration.maxQueues)) ?? 1)
        if !descriptors.isEmpty { queues = descriptors.count }
        hasHeader = try options.bool("vnet_hdr")
        script = try TapConfiguration.script(options, "script")
        downScript = try TapConfiguration.script(options, "downscript")
        if try options.bool("vhost") == true {
            throw VMMError("vhost=on is not supported", hint: "The VMM copies frames itself: leave vhost out.")
        }
        try options.finish()
    }

    /// `3:4:5`.
    private static func numbers(_ text: String) throws(VMMError) -> [Int32] {
        var result: [Int32] = []
        for part in text.split(separator: ":", omittingEmptySubsequences: false) {
            guard let number = SizeText.unsignedNumber(String(part)), let fd = Int32(exactly: number),
                !result.contains(fd)
            else { throw VMMError("Parameter 'fds' expects file descriptors with ':' between, not '\(text)'") }
            result.append(fd)
        }
        guard result.count <= maxQueues else { throw VMMError("fds= names more than \(maxQueues) queues") }
        return result
    }

    private static func script(_ options: KeyValueOptions, _ key: String) throws(VMMError) -> String? {
        guard let path = try options.string(key), path != "no", !path.isEmpty else { return nil }
        return path
    }

    /// As the kernel's `dev_valid_name`; `%d` stands for a number.
    private static func isName(_ text: String) -> Bool {
        let bytes = Array(text.utf8)
        return (1...15).contains(bytes.count) && text != "." && text != ".."
            && bytes.allSatisfy { $0 > 0x20 && $0 != UInt8(ascii: "/") && $0 != UInt8(ascii: ":") && $0 != 0x7f }
    }
}
