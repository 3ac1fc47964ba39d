import BatonBase
import BatonMachine
import CBaton
import Glibc

/// The format that checkpoints and the CPR state share.
///
/// All integers are little endian.
///
///     header   8 bytes  magic "BATONVM\0" or "BATONCPR"
///              4        format version (1)
///              4        number of sections
///              8        bytes of all sections together
///              4        CRC-32C of the header before this field
///              4        zero
///     section  2        length of the name (1...255)
///              2        flags (1: optional, may be skipped by a reader that
///                       does not know the name)
///              4        section version
///              4        length of the payload
///              4        CRC-32C of the fields before, the name and the payload
///              ...      name, payload
///
/// A payload is a sequence of named fields, see `StateWriter`.
public struct SectionContainer {
    public enum Kind: String, CustomStringConvertible {
        case checkpoint
        case cprState = "CPR state"

        public var description: String { rawValue }

        var magic: [UInt8] {
            switch self {
            case .checkpoint: Array("BATONVM\0".utf8)
            case .cprState: Array("BATONCPR".utf8)
            }
        }
    }

    public struct Section {
        public var name: String
        public var version: UInt32
        public var optional: Bool
        public var payload: ArraySlice<UInt8>
    }

    public static let formatVersion: UInt32 = 1
    /// Bytes before the first section.
    public static let headerSize = 32
    /// No machine has as many devices.
    static let countLimit: UInt32 = 1 << 16
    /// Bytes of the sections and the header together, as encoded.
    public var encodedLength: Int {
        sections.reduce(SectionContainer.headerSize) { $0 + 16 + $1.name.utf8.count + $1.payload.count }
    }

    /// How many bytes of a file belong to its container, by the first bytes
    /// of it: more may follow. As many as are there when they are no header.
    static func extent(header: [UInt8], fileLength: Int) -> Int {
        guard header.count >= headerSize else { return fileLength }
        var cursor = ByteCursor(header[16...])
        let length = cursor.unsigned(UInt64.self) ?? 0
        return length > UInt64(fileLength) ? fileLength : min(fileLength, headerSize + Int(length))
    }

    public var kind: Kind
    public private(set) var sections: [Section] = []
    /// Where each is, in a container that has been read: one that is written, in the guest's pause, is not searched.
    private var places: [String: Int] = [:]

    public init(kind: Kind) { self.kind = kind }

    /// Reads a file of either kind, by its magic; for tools.
    /// - Throws: why it cannot be read, is neither, or is damaged.
    public init(file: String) throws(VMMError) {
        let fd = try FD.openFile(file, O_RDONLY)
        let magic = [UInt8](unsafeUninitializedCapacity: 8) { buffer, count in
            count = max(0, retryingInterrupts { pread(fd.raw, buffer.baseAddress, 8, 0) })
        }
        if magic == Kind.cprState.magic {
            let state = try FD.readAll(fd.raw, limit: CprState.sizeLimit, from: file)
            try self.init(kind: .cprState, parsing: state, name: file)
        } else {
            self = try Checkpoint.read(fd.raw, name: file)
        }
    }

    public func section(_ name: String) -> Section? {
        if let place = places[name] { return sections[place] }
        return places.count == sections.count ? nil : sections.last { $0.name == name }
    }

    /// - Parameter guess: where it probably is.
    func section(_ name: String, at guess: Int) -> Section? {
        if sections.indices.contains(guess), sections[guess].name == name { return sections[guess] }
        return section(name)
    }

    public mutating func add(_ name: String, version: UInt32, optional: Bool = false, _ writer: StateWriter) {
        add(Section(name: name, version: version, optional: optional, payload: writer.encoded()[...]))
    }

    public mutating func add(_ section: Section) { sections.append(section) }

    public func reader(_ section: Section) throws(VMMError) -> StateReader {
        try StateReader(section: section.name, version: section.version, payload: section.payload)
    }

    public func encoded() -> [UInt8] {
        let length = encodedLength
        return [UInt8](unsafeUninitializedCapacity: length) { buffer, count in
            var place = 0
            func put(_ bytes: UnsafeRawBufferPointer) {
                guard let from = bytes.baseAddress, let to = buffer.baseAddress else { return }
                memcpy(to + place, from, bytes.count)
                place += bytes.count
            }
            func put<T: FixedWidthInteger>(_ value: T) { withUnsafeBytes(of: value.littleEndian) { put($0) } }
            func put(_ name: String) {
                var name = name
                name.withUTF8 { put(UnsafeRawBufferPointer($0)) }
            }
            func crc(from start: Int, to end: Int, continued: UInt32 = 0) -> UInt32 {
                buffer.baseAddress.map { cbaton_crc32c(continued, $0 + start, end - start) } ?? 0
            }
            kind.magic.withUnsafeBytes { put($0) }
            put(SectionContainer.formatVersion)
            put(UInt32(sections.count))
            put(UInt64(length - SectionContainer.headerSize))
            put(crc(from: 0, to: place))
            put(0 as UInt32)
            for section in sections {
                let start = place
                put(UInt16(section.name.utf8.count))
                put(UInt16(section.optional ? 1 : 0))
                put(section.version)
                put(UInt32(section.payload.count))
                let checksum = place
                put(0 as UInt32)
                let name = place
                put(section.name)
                section.payload.withUnsafeBytes { put($0) }
                let end = place
                let value = crc(from: name, to: end, continued: crc(from: start, to: checksum))
                place = checksum
                put(value)
                place = end
            }
            count = place
        }
    }

    private static func crc(_ bytes: ArraySlice<UInt8>, from start: UInt32 = 0) -> UInt32 {
        bytes.withUnsafeBytes { cbaton_crc32c(start, $0.baseAddress, $0.count) }
    }
    private static func checksum(_ header: ArraySlice<UInt8>, _ name: String, _ payload: ArraySlice<UInt8>) -> UInt32 {
        crc(payload, from: crc(Array(name.utf8)[...], from: crc(header)))
    }

    /// Parses and checks a whole container.
    /// - Parameter name: the file, for error texts.
    /// - Throws: `NAME is not a vmstate file` for anything else, and errors
    ///   that say what is damaged, truncated or too new.
    public init(kind: Kind, parsing bytes: [UInt8], name: String) throws(VMMError) {
        self.kind = kind
        let notOurs = VMMError("\(name) is not a vmstate file")
        guard bytes.starts(with: kind.magic) else { throw notOurs }
        var cursor = ByteCursor(bytes[8...])
        guard let version = cursor.unsigned(UInt32.self), let count = cursor.unsigned(UInt32.self),
            let length = cursor.unsigned(UInt64.self), let headerCRC = cursor.unsigned(UInt32.self),
            let reserved = cursor.unsigned(UInt32.self)
        else { throw VMMError("\(name) is truncated") }
        guard SectionContainer.crc(bytes[..<24]) == headerCRC, reserved == 0 else {
            throw VMMError("\(name) has a damaged header")
        }
        guard version == SectionContainer.formatVersion else {
            throw VMMError(
                "\(name) has format version \(version), this VMM reads version \(SectionContainer.formatVersion)",
                hint: "Load it with the version of Baton that wrote it, or a later one.")
        }
        guard count <= SectionContainer.countLimit else {
            throw VMMError("\(name) has \(count) sections, at most \(SectionContainer.countLimit) are accepted")
        }
        guard UInt64(cursor.remaining) >= length else {
            throw VMMError("\(name) is truncated (\(cursor.remaining) of \(length) bytes of sections)")
        }
        guard UInt64(cursor.remaining) == length else { throw VMMError("\(name) has bytes after its last section") }
        sections.reserveCapacity(Int(count))
        places.reserveCapacity(Int(count))
        for _ in 0..<count {
            let rest = cursor
            guard let nameLength = cursor.unsigned(UInt16.self), let flags = cursor.unsigned(UInt16.self),
                let sectionVersion = cursor.unsigned(UInt32.self), let payloadLength = cursor.unsigned(UInt32.self),
                let checksum = cursor.unsigned(UInt32.self), (1...255).contains(nameLength),
                let nameBytes = cursor.take(Int(nameLength)),
                let sectionName = ByteCursor.text(nameBytes),
                let payload = cursor.take(Int(payloadLength))
            else { throw VMMError("\(name) has a damaged section table") }
            guard SectionContainer.checksum(rest.peek(12), sectionName, payload) == checksum else {
                throw VMMError("\(name) has a damaged section '\(sectionName)' (checksum mismatch)")
            }
            guard places.updateValue(sections.count, forKey: sectionName) == nil else {
                throw VMMError("\(name) has two sections '\(sectionName)'")
            }
            add(Section(name: sectionName, version: sectionVersion, optional: flags & 1 != 0, payload: payload))
        }
        guard cursor.isAtEnd else { throw VMMError("\(name) has bytes after its last section") }
    }
}
