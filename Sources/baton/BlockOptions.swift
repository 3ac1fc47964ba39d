import BatonRuntime

/// `-drive` and `-blockdev`.
enum BlockOptions {
    /// What a `-drive` asks for beside its back end.
    enum Use {
        case none
        /// `if=virtio`: a device of its own.
        case virtio(driveID: String)
        /// `if=pflash`: the contents of a flash bank.
        case flash(unit: Int, driveID: String)
    }

    static func drive(_ text: String, index: Int, vm: VirtualMachine) throws(VMMError) -> Use {
        let options = try KeyValueOptions(text)
        let interface = try options.string("if") ?? "virtio"
        guard ["none", "virtio", "pflash"].contains(interface) else {
            throw VMMError("unsupported bus type '\(interface)'", hint: "Use if=none, if=virtio or if=pflash.")
        }
        let unit = try options.number("unit", in: 0...1)
        _ = try options.number("index")
        if try options.enumeration("media", ["disk", "cdrom"]) == "cdrom", !options.has("readonly") {
            options.set("readonly", "on")
        }
        _ = try options.enumeration("cache", ["none", "writeback", "writethrough", "directsync", "unsafe"])
        try skipAIO(options)
        // snapshot=on, and any other format, are a storage daemon's (ServedDrive).
        _ = try options.bool("snapshot")
        let id = try options.identifier("id") ?? "\(interface)\(index)"
        let file = try options.requiredString("file")
        let locks = try locking(options, "file.locking")
        let format = try options.string("format")
        let backend = try open(
            options, id: id, file: file, readOnlyKey: "readonly", format: format, locks: locks, vm: vm)
        try options.finish()
        try vm.add(backend)
        switch interface {
        case "virtio": return .virtio(driveID: id)
        case "pflash": return .flash(unit: Int(unit ?? UInt64(index & 1)), driveID: id)
        default: return .none
        }
    }

    /// - Parameter format: as the command line says; nil to look at the image.
    private static func open(
        _ options: KeyValueOptions, id: String, file: String, readOnlyKey: String, format: String?, locks: Bool,
        vm: VirtualMachine
    ) throws(VMMError) -> BlockBackend {
        guard format == nil || format == "raw" else {
            throw VMMError(
                "Unknown driver '\(format ?? "")'",
                hint: "Only raw images are supported there: convert it with qemu-img.")
        }
        let discard = try options.enumeration("discard", ["unmap", "ignore", "on", "off"]) ?? "unmap"
        return try BlockBackend(
            id: id, filename: file, readOnly: try options.bool(readOnlyKey) ?? false,
            discardEnabled: discard == "unmap" || discard == "on", formatIsKnown: format != nil, isLocked: locks,
            handover: vm.handover)
    }

    /// `locking=`: `auto`, as there are locks on every Linux that this runs on, is `on`.
    private static func locking(_ options: KeyValueOptions, _ key: String) throws(VMMError) -> Bool {
        try options.enumeration(key, ["on", "off", "auto"]) != "off"
    }

    /// `aio=`: requests are carried out in the call whatever it says.
    private static func skipAIO(_ options: KeyValueOptions) throws(VMMError) {
        _ = try options.enumeration("aio", ["threads", "native", "io_uring"])
    }

    /// File nodes that `-blockdev driver=raw,file=NODE` may refer to.
    struct Nodes {
        private var files: [String: (path: String, locks: Bool)] = [:]

        mutating func add(_ text: String, vm: VirtualMachine) throws(VMMError) {
            let options = try KeyValueOptions(text, impliedKey: "driver", style: .keyval)
            let driver = try options.requiredString("driver")
            let name = try options.requiredIdentifier("node-name")
            _ = options.under("cache")
            let file: (path: String, locks: Bool)
            switch driver {
            case "file", "host_device":
                file = (try options.requiredString("filename"), try locking(options, "locking"))
                try skipAIO(options)
                files[name] = file
            case "raw":
                if let nested = options.under("file") {
                    guard let kind = try nested.string("driver"), kind == "file" || kind == "host_device" else {
                        throw VMMError("Parameter 'file.driver' must be 'file' or 'host_device'")
                    }
                    file = (try nested.requiredString("filename"), try locking(nested, "locking"))
                    try skipAIO(nested)
                    _ = try nested.string("node-name")
                    _ = try nested.bool("read-only")
                    _ = nested.under("cache")
                    try nested.finish()
                } else {
                    let node = try options.requiredString("file")
                    guard let known = files[node] else {
                        throw VMMError("Cannot find device='' nor node-name='\(node)'")
                    }
                    file = known
                }
            default:
                throw VMMError("Unknown driver '\(driver)'", hint: "Drivers: file, host_device, raw.")
            }
            // A node's driver says what the bytes are.
            let backend = try open(
                options, id: name, file: file.path, readOnlyKey: "read-only", format: "raw", locks: file.locks, vm: vm)
            try options.finish()
            try vm.add(backend)
        }
    }
}
