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
        _ = try options.string("media")
        _ = try options.string("cache")
        _ = try options.string("aio")
        if try options.bool("snapshot") == true {
            throw VMMError("snapshot=on is not supported; use a copy of the image")
        }
        let id = try options.identifier("id") ?? "\(interface)\(index)"
        let backend = try open(options, id: id, file: try options.requiredString("file"), readOnlyKey: "readonly")
        try options.finish()
        try vm.add(backend)
        switch interface {
        case "virtio": return .virtio(driveID: id)
        case "pflash": return .flash(unit: Int(unit ?? UInt64(index & 1)), driveID: id)
        default: return .none
        }
    }

    private static func open(_ options: KeyValueOptions, id: String, file: String, readOnlyKey: String)
        throws(VMMError) -> BlockBackend
    {
        let format = try options.string("format") ?? "raw"
        guard format == "raw" else {
            throw VMMError(
                "Unknown driver '\(format)'", hint: "Only raw images are supported: convert it with qemu-img.")
        }
        let discard = try options.enumeration("discard", ["unmap", "ignore", "on", "off"]) ?? "unmap"
        return try BlockBackend(
            id: id, filename: file, readOnly: try options.bool(readOnlyKey) ?? false,
            discardEnabled: discard == "unmap" || discard == "on")
    }

    /// File nodes that `-blockdev driver=raw,file=NODE` may refer to.
    struct Nodes {
        private var files: [String: String] = [:]

        mutating func add(_ text: String, vm: VirtualMachine) throws(VMMError) {
            let options = try KeyValueOptions(text, impliedKey: "driver", style: .keyval)
            let driver = try options.requiredString("driver")
            let name = try options.requiredIdentifier("node-name")
            _ = options.under("cache")
            switch driver {
            case "file", "host_device":
                let file = try options.requiredString("filename")
                _ = try options.string("aio")
                _ = try options.string("locking")
                try vm.add(try BlockOptions.open(options, id: name, file: file, readOnlyKey: "read-only"))
                files[name] = file
            case "raw":
                let file: String
                if let nested = options.under("file") {
                    guard let kind = try nested.string("driver"), kind == "file" || kind == "host_device" else {
                        throw VMMError("Parameter 'file.driver' must be 'file' or 'host_device'")
                    }
                    file = try nested.requiredString("filename")
                    _ = try nested.string("aio")
                    _ = try nested.string("locking")
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
                try vm.add(try BlockOptions.open(options, id: name, file: file, readOnlyKey: "read-only"))
            default:
                throw VMMError("Unknown driver '\(driver)'", hint: "Drivers: file, host_device, raw.")
            }
            try options.finish()
        }
    }
}
