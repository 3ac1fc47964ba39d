import BatonRuntime

/// `blockdev-add`, `blockdev-del` and `block_resize`.
func registerBlockCommands(
    vm: VirtualMachine, cpr: CprController, options: BlockOptions, plugged: PluggedParts
) throws(VMMError) {
    var options = options
    func checkIdle() throws(VMMError) { if let refusal = cpr.refusal { throw refusal } }
    /// A disk that a storage daemon serves is what it was at the start of the VM.
    func refuseServed(_ name: String, _ command: String) throws(VMMError) {
        guard let disk = vm.servedDisk(name) else { return }
        throw VMMError(
            "drive '\(name)' is of the format '\(disk.format)', which \(command) cannot change while the VM runs",
            hint: "Shut the VM down and use qemu-img, or convert the image with 'qemu-img convert -O raw'.")
    }
    try vm.commands.add(
        QMPCommand("blockdev-add", arguments: BlockSchema.options) {
            (arguments: JSONObject) throws(VMMError) -> JSON in
            try checkIdle()
            try options.add(try KeyValueOptions(arguments))
            plugged.add(.blockdev, arguments["node-name"]?.stringValue, JSON.object(arguments).text())
            return [:]
        })
    try vm.commands.add(
        QMPCommand("blockdev-del", arguments: [QMPMember("node-name", .string)]) {
            (arguments: JSONObject) throws(VMMError) -> JSON in
            try checkIdle()
            let name = arguments["node-name"]?.stringValue ?? ""
            try refuseServed(name, "blockdev-del")
            try options.remove(name)
            plugged.remove(.blockdev, name)
            return [:]
        })
    func resize(_ name: String, _ bytes: Int64) throws(VMMError) {
        try checkIdle()
        try refuseServed(name, "block_resize")
        guard let backend = vm.blockBackend(name) else {
            throw VMMError("Cannot find device='\(name)' nor node-name='\(name)'")
        }
        guard bytes > 0 else { throw VMMError("Parameter 'size' expects a >0 size") }
        guard bytes % 512 == 0 else { throw VMMError("Parameter 'size' expects a multiple of 512") }
        try backend.resize(to: UInt64(bytes))
    }
    try vm.commands.add(
        QMPCommand(
            "block_resize",
            arguments: [
                QMPMember("device", .string, optional: true), QMPMember("node-name", .string, optional: true),
                QMPMember("size", .int),
            ]
        ) { (arguments: JSONObject) throws(VMMError) -> JSON in
            guard let name = arguments["node-name"]?.stringValue ?? arguments["device"]?.stringValue else {
                throw VMMError("Either node-name or device must be specified")
            }
            try resize(name, arguments["size"]?.intValue ?? 0)
            return [:]
        })
    try vm.commands.add(
        HMPCommand("block_resize", parameters: "device size", help: "resize a block image (in MiB, or with a unit)") {
            (line: String) throws(VMMError) -> String in
            let words = line.split(separator: " ").map(String.init)
            guard words.count == 2 else { throw VMMError("usage: block_resize device size") }
            let size = try KeyValueOptions("size=\(words[1])").requiredSize("size", defaultUnit: 1 << 20)
            try resize(words[0], Int64(clamping: size))
            return ""
        })
}

/// The arguments of `blockdev-add`.
private enum BlockSchema {
    private static func enumeration(_ name: String, _ values: [String]) -> QMPType {
        .enumeration(name: name, values: values)
    }

    static let options: [QMPMember] = [
        QMPMember("driver", enumeration("BlockdevDriver", ["file", "host_device", "raw"])),
        QMPMember("node-name", .string, optional: true),
        QMPMember("read-only", .bool, optional: true),
        QMPMember("auto-read-only", .bool, optional: true),
        QMPMember(
            "discard", enumeration("BlockdevDiscardOptions", ["ignore", "unmap"]), optional: true),
        QMPMember(
            "detect-zeroes",
            enumeration("BlockdevDetectZeroesOptions", DetectZeroes.allCases.map(\.rawValue)), optional: true),
        QMPMember(
            "cache",
            .object(
                name: "BlockdevCacheOptions",
                members: [QMPMember("direct", .bool, optional: true), QMPMember("no-flush", .bool, optional: true)]),
            optional: true),
        QMPMember("filename", .string, optional: true),
        QMPMember("aio", enumeration("BlockdevAioOptions", ["threads", "native", "io_uring"]), optional: true),
        QMPMember("locking", enumeration("OnOffAuto", ["auto", "on", "off"]), optional: true),
        // A node's name, or a node.
        QMPMember("file", .any, optional: true),
    ]
}
