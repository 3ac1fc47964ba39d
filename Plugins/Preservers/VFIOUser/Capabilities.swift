import BatonRuntime

/// What the server said when the connection was made.
struct VFIOUserCapabilities {
    /// Descriptors that it takes with one message.
    let messageFDs: Int
    /// Bytes that it takes in one message.
    let transfer: Int
    /// Which of the descriptors of its answer is its connection for requests
    /// of its own; nil when these come on the one connection.
    let twinSocket: Int?

    /// What the client sends: version and capabilities, which end in a NUL.
    static var request: [UInt8] {
        let text =
            "{\"capabilities\":{\"max_msg_fds\":16,\"max_data_xfer_size\":\(VFIOUser.maxTransfer),"
            + "\"twin_socket\":{\"supported\":true}}}"
        return littleEndianBytes(VFIOUser.majorVersion) + littleEndianBytes(VFIOUser.minorVersion) + Array(text.utf8)
            + [0]
    }

    /// Reads the server's version and capabilities.
    init(answer: [UInt8]) throws(VMMError) {
        var cursor = ByteCursor(answer[...])
        guard let major = cursor.unsigned(UInt16.self), let minor = cursor.unsigned(UInt16.self) else {
            throw VMMError("its version has \(answer.count) bytes")
        }
        guard major == VFIOUser.majorVersion, minor <= VFIOUser.minorVersion else {
            let ours = "\(VFIOUser.majorVersion).\(VFIOUser.minorVersion)"
            throw VMMError(
                "its version is \(major).\(minor), ours \(ours)",
                hint: "The server must speak vfio-user \(ours) or an older minor version.")
        }
        let text = answer.dropFirst(4)
        guard !text.isEmpty else {
            self.init()
            return
        }
        guard text.last == 0 else { throw VMMError("its capabilities do not end in a NUL") }
        let json: JSON
        do throws(VMMError) { json = try JSON(parsing: Array(text.dropLast())) } catch {
            throw error.prefixed("its capabilities are no JSON")
        }
        guard let object = json.objectValue else { throw VMMError("its capabilities are no JSON object") }
        let members = try VFIOUserCapabilities.object(object, "capabilities") ?? JSONObject()
        let twin = try VFIOUserCapabilities.object(members, "twin_socket")
        var twinSocket: Int?
        if let twin, twin["supported"]?.boolValue == true {
            twinSocket = try VFIOUserCapabilities.number(twin, "fd_index", in: 0...15) ?? 0
        }
        self.init(
            messageFDs: try VFIOUserCapabilities.number(members, "max_msg_fds", in: 1...Int64.max)
                ?? VFIOUser.defaultMessageFDs,
            transfer: try VFIOUserCapabilities.number(members, "max_data_xfer_size", in: 64...Int64.max)
                ?? VFIOUser.maxTransfer,
            twinSocket: twinSocket)
    }

    /// - Parameters: the protocol's defaults, where the server says nothing else.
    init(
        messageFDs: Int = VFIOUser.defaultMessageFDs, transfer: Int = VFIOUser.maxTransfer, twinSocket: Int? = nil
    ) {
        self.messageFDs = min(messageFDs, 16)
        self.transfer = min(transfer, VFIOUser.maxTransfer)
        self.twinSocket = twinSocket
    }

    private static func object(_ members: JSONObject, _ key: String) throws(VMMError) -> JSONObject? {
        guard let value = members[key] else { return nil }
        guard let object = value.objectValue else { throw VMMError("its capability '\(key)' is no JSON object") }
        return object
    }

    private static func number(
        _ members: JSONObject, _ key: String, in range: ClosedRange<Int64>
    ) throws(VMMError) -> Int? {
        guard let value = members[key] else { return nil }
        guard let number = value.intValue, range.contains(number) else {
            throw VMMError("its capability '\(key)' is not a number from \(range.lowerBound) on")
        }
        return Int(truncatingIfNeeded: number)
    }
}
