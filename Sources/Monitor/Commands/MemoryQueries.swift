import BatonRuntime

/// `query-memdev`, `query-memory-size-summary`, `x-query-ramblock`, and
/// `info memdev`, `info ramblock`, `info mtree`, `info memory_size_summary`.
func registerMemoryQueries(_ vm: VirtualMachine, _ memory: GuestMemory) throws(VMMError) {
    let commands = vm.commands
    let policy = QMPType.enumeration(name: "HostMemPolicy", values: ["default", "preferred", "bind", "interleave"])
    let memdev = QMPType.object(
        name: "Memdev",
        members: [
            QMPMember("id", .string, optional: true), QMPMember("size", .int), QMPMember("merge", .bool),
            QMPMember("dump", .bool), QMPMember("prealloc", .bool), QMPMember("share", .bool),
            QMPMember("host-nodes", .array(.int)), QMPMember("policy", policy),
        ])
    try commands.add(
        QMPCommand.query("query-memdev", returns: .array(memdev)) {
            .array(
                memory.backends.map { backend -> JSON in
                    let nodes: [JSON] = (backend.properties.hostNodes?.nodes ?? []).map { JSON($0) }
                    let policy = backend.properties.hostNodes?.policy ?? .default
                    return [
                        "id": .string(backend.id), "size": JSON(backend.block.usedLength),
                        "merge": .bool(backend.properties.merge), "dump": .bool(backend.properties.dump),
                        "prealloc": .bool(backend.properties.prealloc), "share": .bool(backend.block.shared),
                        "host-nodes": .array(nodes), "policy": .string(policy.rawValue),
                    ]
                })
        })
    try commands.add(
        HMPCommand.info("memdev", "show memory backends") {
            memory.backends.map(memdevText).joined()
        })

    try commands.add(
        QMPCommand.query(
            "query-memory-size-summary",
            returns: .object(
                name: "MemoryInfo",
                members: [QMPMember("base-memory", .int), QMPMember("plugged-memory", .int, optional: true)])
        ) { [unowned vm] in ["base-memory": JSON(vm.ramSize), "plugged-memory": 0] })
    try commands.add(
        HMPCommand.info(
            "memory_size_summary", "show the amount of initially allocated and present hotpluggable memory"
        ) {
            [unowned vm] in "base memory: \(vm.ramSize)\nplugged memory: 0\n"
        })

    try commands.add(
        QMPCommand.query("x-query-ramblock", returns: humanReadableText) {
            ["human-readable-text": .string(ramBlockTable(memory))]
        })
    try commands.add(HMPCommand.info("ramblock", "show system ramblock information") { ramBlockTable(memory) })
    try commands.add(HMPCommand.info("mtree", "show memory tree") { [unowned vm] in memoryTree(vm.addressSpace) })
}

private func memdevText(_ backend: GuestMemory.Backend) -> String {
    let properties = backend.properties
    let policy = properties.hostNodes?.policy ?? .default
    var nodes = ""
    for node in properties.hostNodes?.nodes ?? [] { nodes += nodes.isEmpty ? "\(node)" : ",\(node)" }
    return "memory backend: \(backend.id)\n  type: \(backend.typeName)\n  size:  \(backend.block.usedLength)\n"
        + "  merge: \(properties.merge)\n  dump: \(properties.dump)\n"
        + "  prealloc: \(properties.prealloc)\n  share: \(backend.block.shared)\n"
        + "  policy: \(policy.rawValue)\n  host nodes: \(nodes)\n"
}

/// A table like QEMU's, with the allocator, descriptor and sharing of each
/// block after its columns: they decide what a restart can preserve.
private func ramBlockTable(_ memory: GuestMemory) -> String {
    var text =
        "              Block Name    PSize  "
        + "            Offset               Used              Total                HVA  RO  FD  SHARED  ORIGIN\n"
    var offset: UInt64 = 0
    for block in memory.blocks {
        text += leftPadded(block.name, 24) + leftPadded("\(Mapping.pageSize >> 10) KiB", 9)
        for value in [
            offset, UInt64(block.usedLength), UInt64(block.maxLength), UInt64(UInt(bitPattern: block.host)),
        ] {
            text += "  " + hex16(value)
        }
        text +=
            leftPadded("rw", 4) + leftPadded("\(block.fd)", 4)
            + leftPadded(block.shared ? "on" : "off", 8) + "  \(block.origin)\n"
        // Block offsets are a space of their own, each block after the last.
        offset += UInt64(block.maxLength)
    }
    return text
}

private func memoryTree(_ space: AddressSpace) -> String {
    let ram = space.ramRanges.map {
        (start: $0.start, size: $0.size, kind: $0.readOnly ? "rom" : "ram", name: $0.block.name)
    }
    let devices = space.mmioRegions.map { (start: $0.start, size: $0.size, kind: "i/o", name: $0.name) }
    let lines = (ram + devices).sorted { $0.start < $1.start }.map {
        "    \(plainHex($0.start))-\(plainHex($0.start + $0.size - 1)) (prio 0, \($0.kind)): \($0.name)\n"
    }
    return "address-space: memory\n  0000000000000000-ffffffffffffffff (prio 0, i/o): system\n" + lines.joined() + "\n"
}

private func leftPadded(_ text: String, _ width: Int) -> String {
    String(repeating: " ", count: max(0, width - text.utf8.count)) + text
}
private func plainHex(_ value: UInt64) -> String {
    let digits = String(value, radix: 16)
    return String(repeating: "0", count: 16 - digits.utf8.count) + digits
}
private func hex16(_ value: UInt64) -> String { "0x" + plainHex(value) }
