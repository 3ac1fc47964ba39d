import BatonRuntime

/// Adds the monitor commands about chardevs: `query-chardev`,
/// `query-chardev-backends`, `ringbuf-read`, `ringbuf-write`,
/// `chardev-send-break`, and their HMP forms.
public func registerChardevCommands(vm: VirtualMachine) throws(VMMError) {
    try addQueries(vm)
    try addRingBuffer(vm)
    // Of `-device virtserialport` and `virtconsole`: a program of the guest's opens or closes the port.
    vm.commands.addEvent(
        "VSERPORT_CHANGE",
        data: .object(
            name: "q_obj_VSERPORT_CHANGE-arg", members: [QMPMember("id", .string), QMPMember("open", .bool)]))
    try vm.commands.add(
        QMPCommand("chardev-send-break", arguments: [QMPMember("id", .string)]) {
            [unowned vm] (arguments: JSONObject) throws(VMMError) -> JSON in
            let id = arguments["id"]?.stringValue ?? ""
            guard let chardev = vm.chardev(id) else { throw VMMError("Chardev '\(id)' not found") }
            chardev.frontend?.chardevEvent(.breakCondition)
            return [:]
        })
}

private func addQueries(_ vm: VirtualMachine) throws(VMMError) {
    let info = QMPType.object(
        name: "ChardevInfo",
        members: [
            QMPMember("label", .string), QMPMember("filename", .string), QMPMember("frontend-open", .bool),
        ])
    try vm.commands.add(
        QMPCommand("query-chardev", returns: .array(info)) {
            [unowned vm] (_: JSONObject) throws(VMMError) -> JSON in
            .array(
                vm.chardevs.map { chardev in
                    [
                        "label": .string(chardev.id), "filename": .string(chardev.filename),
                        "frontend-open": .bool(chardev.frontend?.isFrontendOpen ?? (chardev is MuxChardev)),
                    ]
                })
        })
    let backend = QMPType.object(name: "ChardevBackendInfo", members: [QMPMember("name", .string)])
    try vm.commands.add(
        QMPCommand("query-chardev-backends", returns: .array(backend)) {
            (_: JSONObject) throws(VMMError) -> JSON in
            .array(ChardevFactory.backends.map { ["name": .string($0)] })
        })
    try vm.commands.add(
        HMPCommand("info chardev", help: "show the character devices") {
            [unowned vm] (_: String) throws(VMMError) -> String in
            vm.chardevs.map { "\($0.id): filename=\($0.filename)\n" }.joined()
        })
}

private func addRingBuffer(_ vm: VirtualMachine) throws(VMMError) {
    let format = QMPType.enumeration(name: "DataFormat", values: ["utf8", "base64"])
    func ringBuffer(_ id: String) throws(VMMError) -> RingBufferChardev {
        guard let chardev = vm.chardev(id) else { throw VMMError("Device '\(id)' not found") }
        guard let ring = chardev as? RingBufferChardev else { throw VMMError("\(id) is not a ringbuf device") }
        return ring
    }
    try vm.commands.add(
        QMPCommand(
            "ringbuf-read",
            arguments: [
                QMPMember("device", .string), QMPMember("size", .int), QMPMember("format", format, optional: true),
            ], returns: .string
        ) { (arguments: JSONObject) throws(VMMError) -> JSON in
            let ring = try ringBuffer(arguments["device"]?.stringValue ?? "")
            guard let size = arguments["size"]?.intValue, size > 0 else {
                throw VMMError("size must be greater than zero")
            }
            let bytes = ring.takeBytes(Int(min(size, Int64(ring.size))))
            if arguments["format"]?.stringValue == "base64" { return .string(Base64.encode(bytes)) }
            return .string(String(decoding: bytes, as: UTF8.self))
        })
    try vm.commands.add(
        QMPCommand(
            "ringbuf-write",
            arguments: [
                QMPMember("device", .string), QMPMember("data", .string),
                QMPMember("format", format, optional: true),
            ]
        ) { (arguments: JSONObject) throws(VMMError) -> JSON in
            let ring = try ringBuffer(arguments["device"]?.stringValue ?? "")
            let text = arguments["data"]?.stringValue ?? ""
            let isBase64 = arguments["format"]?.stringValue == "base64"
            guard let bytes = isBase64 ? Base64.decode(text) : Array(text.utf8) else {
                throw VMMError("Invalid parameter type for 'data', expected: base64")
            }
            _ = bytes.withUnsafeBytes { ring.write($0) }
            return [:]
        })
    try vm.commands.add(
        HMPCommand("ringbuf_read", parameters: "device size", help: "read from a ring buffer character device") {
            (line: String) throws(VMMError) -> String in
            let words = line.split(separator: " ")
            guard words.count == 2, let size = Int(words[1]), size > 0 else {
                throw VMMError("ringbuf_read: expected a device and a size")
            }
            let ring = try ringBuffer(String(words[0]))
            return String(decoding: ring.takeBytes(min(size, ring.size)), as: UTF8.self) + "\n"
        })
    try vm.commands.add(
        HMPCommand("ringbuf_write", parameters: "device data", help: "write to a ring buffer character device") {
            (line: String) throws(VMMError) -> String in
            let words = line.split(separator: " ", maxSplits: 1)
            guard words.count == 2 else { throw VMMError("ringbuf_write: expected a device and data") }
            let ring = try ringBuffer(String(words[0]))
            _ = Array(words[1].utf8).withUnsafeBytes { ring.write($0) }
            return ""
        })
}
