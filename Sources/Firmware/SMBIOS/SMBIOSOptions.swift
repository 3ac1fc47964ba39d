import BatonRuntime

/// `-smbios`: what the tables say instead of, or besides, what they say by themselves. With QEMU's keys and errors.
package struct SMBIOSOptions {
    /// The texts of one type, by their keys.
    typealias Texts = [String: String]

    /// Of types 0 to 4 and 17: what was given last of each key.
    private(set) var texts: [UInt8: Texts] = [:]
    /// Of type 0: `release=`.
    private(set) var release: (major: UInt8, minor: UInt8)?
    /// Of type 0: `uefi=`.
    private(set) var isUEFI = false
    /// Of type 4, in MHz; its family and identification.
    private(set) var maximumSpeed: UInt16 = 2000
    private(set) var currentSpeed: UInt16 = 2000
    private(set) var family: UInt16?
    private(set) var processorID: UInt64?
    /// Of type 17, in MHz.
    private(set) var memorySpeed: UInt16 = 0
    /// Each of type 8.
    private(set) var ports: [(texts: Texts, connector: UInt8, port: UInt8)] = []
    /// Of type 11.
    private(set) var strings: [String] = []
    /// Structures of files, as they are.
    private(set) var structures: [[UInt8]] = []
    /// `uuid=` of type 1.
    package private(set) var uuid: String?

    /// Bytes of a text: more would be read wrongly by some guests.
    private static let textLimit = 4096
    private static let fileLimit: UInt64 = 64 << 10

    /// The texts that fields of a type may have.
    private static let keys: [UInt8: [String]] = [
        0: ["vendor", "version", "date"],
        1: ["manufacturer", "product", "version", "serial", "sku", "family"],
        2: ["manufacturer", "product", "version", "serial", "asset", "location"],
        3: ["manufacturer", "version", "serial", "asset", "sku"],
        4: ["sock_pfx", "manufacturer", "version", "serial", "asset", "part"],
        8: ["internal_reference", "external_reference"],
        11: [],
        17: ["loc_pfx", "bank", "manufacturer", "serial", "asset", "part"],
    ]

    /// - Parameter arguments: of each `-smbios`.
    package init(_ arguments: [String]) throws(VMMError) {
        for text in arguments {
            do throws(VMMError) { try add(try KeyValueOptions(text)) } catch { throw error.prefixed("-smbios \(text)") }
        }
    }

    /// Whether a file has structures of this type, in the place of those that would be made.
    func isFromFile(_ type: UInt8) -> Bool { structures.contains { $0[0] == type } }
    /// Whether fields of this type were given.
    func hasFields(_ type: UInt8) -> Bool {
        switch type {
        case 8: !ports.isEmpty
        case 11: !strings.isEmpty
        default: texts[type] != nil
        }
    }

    private mutating func add(_ options: KeyValueOptions) throws(VMMError) {
        if let path = try options.string("file") {
            try options.finish()
            return try addFile(path)
        }
        guard let number = try options.number("type") else { throw VMMError("Must specify type= or file=") }
        guard let type = UInt8(exactly: number), type < 128 else { throw VMMError("out of range!") }
        guard let keys = SMBIOSOptions.keys[type] else {
            throw VMMError("Don't know how to build fields for SMBIOS type \(type)", hint: "Give it by file=.")
        }
        guard !isFromFile(type) else { throw VMMError("can't add fields, binary file already loaded!") }
        var given: Texts = [:]
        for key in keys {
            guard let value = try options.string(key) else { continue }
            try SMBIOSOptions.check(key, value)
            given[key] = value
        }
        switch type {
        case 0:
            if let value = try options.string("release") { release = try SMBIOSOptions.release(value) }
            isUEFI = try options.bool("uefi") ?? isUEFI
        case 1:
            if let value = try options.string("uuid") {
                guard SMBIOSOptions.bytes(ofUUID: value) != nil else { throw VMMError("Invalid UUID") }
                uuid = value
            }
        case 4:
            func number(_ key: String) throws(VMMError) -> UInt16? {
                try options.number(key, in: 0...0xffff).map { UInt16($0) }
            }
            maximumSpeed = try number("max-speed") ?? maximumSpeed
            currentSpeed = try number("current-speed") ?? currentSpeed
            family = try number("processor-family") ?? family
            processorID = try options.number("processor-id") ?? processorID
        case 8:
            let connector = UInt8(try options.number("connector_type", in: 0...255) ?? 0)
            ports.append((given, connector, UInt8(try options.number("port_type", in: 0...255) ?? 0)))
        case 11:
            for value in try options.strings("value") {
                try SMBIOSOptions.check("value", value)
                strings.append(value)
            }
            for path in try options.strings("path") {
                let limit = UInt64(SMBIOSOptions.textLimit)
                let value = String(decoding: try FileBytes.read(path, limit: limit).bytes, as: UTF8.self)
                try SMBIOSOptions.check("path", value)
                strings.append(value)
            }
            guard strings.count <= 255 else { throw VMMError("there are more than 255 strings") }
        case 17:
            memorySpeed = try options.number("speed", in: 0...0xffff).map { UInt16($0) } ?? memorySpeed
        default: break
        }
        try options.finish()
        if type != 8, type != 11 { texts[type, default: [:]].merge(given) { $1 } }
    }

    private mutating func addFile(_ path: String) throws(VMMError) {
        let bytes = try attempt("Cannot read SMBIOS file \(path)") { () throws(VMMError) in
            try FileBytes.read(path, limit: SMBIOSOptions.fileLimit).bytes
        }
        // Its head, and two zeroes at the end of its strings.
        guard bytes.count >= 6, bytes[1] >= 4, Int(bytes[1]) <= bytes.count - 2, bytes.suffix(2) == [0, 0] else {
            throw VMMError("SMBIOS file \(path) is no structure", hint: "It is one structure with its strings.")
        }
        guard !hasFields(bytes[0]) else {
            throw VMMError("can't load type \(bytes[0]) struct, fields already specified!")
        }
        structures.append(bytes)
    }

    private static func check(_ key: String, _ value: String) throws(VMMError) {
        guard value.utf8.count <= textLimit, !value.utf8.contains(0) else {
            throw VMMError("the value of '\(key)' is longer than \(textLimit) bytes, or has a zero byte in it")
        }
    }

    private static func release(_ text: String) throws(VMMError) -> (major: UInt8, minor: UInt8) {
        let parts = text.split(separator: ".", omittingEmptySubsequences: false)
        guard parts.count == 2, let major = UInt8(parts[0]), let minor = UInt8(parts[1]) else {
            throw VMMError("Invalid release")
        }
        return (major, minor)
    }

    /// The bytes in the order of the text; nil when it is not written as a UUID.
    static func bytes(ofUUID text: String) -> [UInt8]? {
        let groups = text.split(separator: "-", omittingEmptySubsequences: false)
        guard groups.map(\.utf8.count) == [8, 4, 4, 4, 12] else { return nil }
        let digits = Array(groups.joined().utf8)
        var bytes: [UInt8] = []
        for place in stride(from: 0, to: digits.count, by: 2) {
            guard let byte = UInt8(String(decoding: digits[place..<place + 2], as: UTF8.self), radix: 16) else {
                return nil
            }
            bytes.append(byte)
        }
        return bytes
    }
}
