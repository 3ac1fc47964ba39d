import BatonRuntime

/// `query-block` and `info block`.
func registerBlockQueries(_ vm: VirtualMachine) throws(VMMError) {
    let limits = ["bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"]
    let image = QMPType.object(
        name: "ImageInfo",
        members: [QMPMember("filename", .string), QMPMember("format", .string), QMPMember("virtual-size", .int)])
    let cache = QMPType.object(
        name: "BlockdevCacheInfo",
        members: [QMPMember("writeback", .bool), QMPMember("direct", .bool), QMPMember("no-flush", .bool)])
    let inserted = QMPType.object(
        name: "BlockDeviceInfo",
        members: [
            QMPMember("file", .string), QMPMember("node-name", .string, optional: true), QMPMember("ro", .bool),
            QMPMember("drv", .string), QMPMember("backing_file_depth", .int), QMPMember("encrypted", .bool),
            QMPMember(
                "detect_zeroes", .enumeration(name: "BlockdevDetectZeroesOptions", values: ["off", "on", "unmap"])),
        ] + limits.map { QMPMember($0, .int) } + [
            QMPMember("image", image), QMPMember("cache", cache), QMPMember("write_threshold", .int),
        ])
    let info = QMPType.object(
        name: "BlockInfo",
        members: [
            QMPMember("device", .string), QMPMember("qdev", .string, optional: true), QMPMember("type", .string),
            QMPMember("removable", .bool), QMPMember("locked", .bool), QMPMember("inserted", inserted, optional: true),
            QMPMember(
                "io-status",
                .enumeration(name: "BlockDeviceIoStatus", values: BlockIOStatus.allCases.map(\.rawValue)),
                optional: true),
        ])
    try vm.commands.add(
        QMPCommand.query("query-block", returns: .array(info)) { [unowned vm] in
            .array(vm.blockBackends.map { describe($0, limits) } + vm.servedDisks.map(describe))
        })
    try vm.commands.add(
        QMPCommand(
            "query-named-block-nodes", arguments: [QMPMember("flat", .bool, optional: true)], returns: .array(inserted)
        ) { [unowned vm] (_: JSONObject) throws(VMMError) -> JSON in
            .array(vm.blockBackends.map { .object(describeNode($0, limits)) })
        })
    vm.commands.addEvent(
        "BLOCK_IO_ERROR",
        data: .object(
            name: "q_obj_BLOCK_IO_ERROR-arg",
            members: [
                QMPMember("device", .string), QMPMember("node-name", .string, optional: true),
                QMPMember("operation", .enumeration(name: "IoOperationType", values: ["read", "write"])),
                QMPMember("action", .enumeration(name: "BlockErrorAction", values: ["ignore", "report", "stop"])),
                QMPMember("nospace", .bool, optional: true), QMPMember("reason", .string),
            ]))
    try vm.commands.add(
        HMPCommand.info("block", "show info of one block device or all block devices") { [unowned vm] in
            (vm.blockBackends.map(text) + vm.servedDisks.map(text)).joined(separator: "\n")
        })
}

/// What `info block` says of one.
private func text(_ backend: BlockBackend) -> String {
    var text = "\(backend.id): \(backend.filename) (raw\(backend.readOnly ? ", read-only" : ""))\n"
    if let user = backend.user { text += "    Attached to:      \(user)\n" }
    text += "    Cache mode:       \(cache(of: backend).description)\n"
    let detection = backend.settings.detectZeroes
    if detection != .off { text += "    Detect zeroes:    \(detection.rawValue)\n" }
    return text
}

private func text(_ disk: ServedDisk) -> String {
    "\(disk.id): \(disk.filename) (\(disk.format)\(disk.readOnly ? ", read-only" : ""))\n"
        + "    Served by:        \(disk.chardev)\n"
}

/// What another process serves, which alone knows the image.
private func describe(_ disk: ServedDisk) -> JSON {
    ["device": .string(disk.id), "type": "unknown", "removable": false, "locked": false]
}

/// As it is now: the guest may have changed it.
private func cache(of backend: BlockBackend) -> BlockCache {
    var cache = backend.settings.cache
    cache.isWriteback = backend.isWriteback
    return cache
}

private func describeNode(_ backend: BlockBackend, _ limits: [String]) -> JSONObject {
    let cache = cache(of: backend)
    var inserted: JSONObject = [
        "file": .string(backend.filename), "node-name": .string(backend.id), "ro": .bool(backend.readOnly),
        "drv": "raw", "backing_file_depth": 0, "encrypted": false,
        "detect_zeroes": .string(backend.settings.detectZeroes.rawValue),
    ]
    for limit in limits { inserted[limit] = 0 }
    inserted["image"] = [
        "filename": .string(backend.filename), "format": "raw", "virtual-size": JSON(backend.size),
    ]
    inserted["cache"] = [
        "writeback": .bool(cache.isWriteback), "direct": .bool(cache.isDirect),
        "no-flush": .bool(cache.ignoresFlush),
    ]
    inserted["write_threshold"] = 0
    return inserted
}

private func describe(_ backend: BlockBackend, _ limits: [String]) -> JSON {
    var info: JSONObject = ["device": .string(backend.id)]
    if let user = backend.user { info["qdev"] = .string(user) }
    info["type"] = "unknown"
    info["removable"] = false
    info["locked"] = false
    info["io-status"] = .string(backend.ioStatus.rawValue)
    info["inserted"] = .object(describeNode(backend, limits))
    return .object(info)
}
