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
        ])
    try vm.commands.add(
        QMPCommand.query("query-block", returns: .array(info)) { [unowned vm] in
            .array(vm.blockBackends.map { describe($0, limits) } + vm.servedDisks.map(describe))
        })
    try vm.commands.add(
        HMPCommand.info("block", "show info of one block device or all block devices") { [unowned vm] in
            let served = vm.servedDisks.map {
                "\($0.id): \($0.filename) (\($0.format)\($0.readOnly ? ", read-only" : ""))\n"
                    + "    Served by:        \($0.chardev)\n"
            }
            let own = vm.blockBackends.map {
                "\($0.id): \($0.filename) (raw\($0.readOnly ? ", read-only" : ""))\n"
                    + ($0.user.map { "    Attached to:      \($0)\n" } ?? "")
                    + "    Cache mode:       writeback\n"
            }
            return (own + served).joined(separator: "\n")
        })
}

/// What another process serves, which alone knows the image.
private func describe(_ disk: ServedDisk) -> JSON {
    ["device": .string(disk.id), "type": "unknown", "removable": false, "locked": false]
}

private func describe(_ backend: BlockBackend, _ limits: [String]) -> JSON {
    var inserted: JSONObject = [
        "file": .string(backend.filename), "node-name": .string(backend.id), "ro": .bool(backend.readOnly),
        "drv": "raw", "backing_file_depth": 0, "encrypted": false, "detect_zeroes": "off",
    ]
    for limit in limits { inserted[limit] = 0 }
    inserted["image"] = [
        "filename": .string(backend.filename), "format": "raw", "virtual-size": JSON(backend.size),
    ]
    inserted["cache"] = ["writeback": true, "direct": false, "no-flush": false]
    inserted["write_threshold"] = 0

    var info: JSONObject = ["device": .string(backend.id)]
    if let user = backend.user { info["qdev"] = .string(user) }
    info["type"] = "unknown"
    info["removable"] = false
    info["locked"] = false
    info["inserted"] = .object(inserted)
    return .object(info)
}
