import BatonBase
import Glibc

/// The type tag of a field in a checkpoint section.
public enum StateFieldType: UInt8 {
    case unsigned = 1
    case string = 2
    case bytes = 3
    case unsignedArray = 4
    case stringArray = 5
}

/// Collects the state of one device as named fields.
///
/// Fields carry their names, so that a checkpoint can be read without the
/// VMM, and a later version may add fields without breaking an older reader.
public struct StateWriter {
    private var bytes: [UInt8] = []
    private let capacity: Int

    /// - Parameter capacity: bytes that will be enough for most.
    public init(capacity: Int = 512) { self.capacity = capacity }

    /// Begins a field, whose payload of `length` bytes is to follow.
    /// - Parameter value: the payload, if it is a number.
    private mutating func begin(
        _ name: String, _ type: StateFieldType, _ optional: Bool, _ length: Int, _ value: UInt64? = nil
    ) {
        if bytes.isEmpty { bytes.reserveCapacity(capacity) }
        var name = name
        name.withUTF8 { name in
            let head = 1 + name.count + 6
            // The guest may wait for this: it is put together first, and appended at once.
            withUnsafeTemporaryAllocation(byteCount: head + 8, alignment: 1) { field in
                field[0] = UInt8(name.count)
                UnsafeMutableRawBufferPointer(rebasing: field[1...]).copyMemory(from: UnsafeRawBufferPointer(name))
                field[head - 6] = type.rawValue
                field[head - 5] = optional ? 1 : 0
                field.storeBytes(of: UInt32(length).littleEndian, toByteOffset: head - 4, as: UInt32.self)
                if let value { field.storeBytes(of: value.littleEndian, toByteOffset: head, as: UInt64.self) }
                bytes.append(contentsOf: field[..<(value == nil ? head : head + 8)])
            }
        }
    }

    private mutating func append<T: FixedWidthInteger>(_ value: T) {
        withUnsafeBytes(of: value.littleEndian) { bytes.append(contentsOf: $0) }
    }

    /// - Parameters:
    ///   - name: 1 to 255 bytes, unique in the section.
    ///   - optional: a reader that does not know the field may ignore it.
    public mutating func put(_ name: String, _ value: UInt64, optional: Bool = false) {
        begin(name, .unsigned, optional, 8, value)
    }
    public mutating func put(_ name: String, _ value: Bool, optional: Bool = false) {
        put(name, value ? 1 : 0 as UInt64, optional: optional)
    }
    public mutating func put(_ name: String, _ value: String, optional: Bool = false) {
        begin(name, .string, optional, value.utf8.count)
        bytes += value.utf8
    }
    public mutating func put(_ name: String, bytes payload: [UInt8], optional: Bool = false) {
        begin(name, .bytes, optional, payload.count)
        bytes += payload
    }
    public mutating func put(_ name: String, _ values: [UInt64], optional: Bool = false) {
        begin(name, .unsignedArray, optional, values.count * 8)
        #if _endian(little)
        values.withUnsafeBytes { bytes.append(contentsOf: $0) }
        #else
        for value in values { append(value) }
        #endif
    }

    public mutating func put(_ name: String, _ values: [String], optional: Bool = false) {
        begin(name, .stringArray, optional, values.reduce(0) { $0 + 4 + $1.utf8.count })
        for value in values {
            append(UInt32(value.utf8.count))
            bytes += value.utf8
        }
    }

    /// The section's payload: for each field a name length (1 byte), the name,
    /// a type (1), flags (1: optional), a payload length (4) and the payload,
    /// all little endian.
    public func encoded() -> [UInt8] { bytes }
}

/// Little-endian bytes of an integer.
@inlinable
public func littleEndianBytes<T: FixedWidthInteger>(_ value: T) -> [UInt8] {
    withUnsafeBytes(of: value.littleEndian) { Array($0) }
}

/// Reads the fields of one section back. Every accessor checks presence, type
/// and range, and says which section and field was wrong.
///
/// A file may have millions of fields: of each only its place is kept, and
/// names are compared where they are.
public struct StateReader {
    /// The section's name, for error texts.
    public let section: String
    /// The version that the section was written with.
    public let version: UInt32
    private let fields: StateFields
    /// Where a name is, in a section of many fields.
    private let names: FieldNames?
    private static let few = 16

    private final class Progress {
        var seen: [Bool] = []
        /// Where the next field is that is asked for: most readers ask in the
        /// order of writing.
        var next = 0
    }
    private let progress = Progress()

    /// Parses a section's payload.
    /// - Throws: an error that names the section when the payload is malformed.
    public init(section: String, version: UInt32, payload: ArraySlice<UInt8>) throws(VMMError) {
        self.section = section
        self.version = version
        fields = try StateFields(payload, section: section)
        names = fields.count > StateReader.few ? FieldNames(fields) : nil
        if let twice = if let names { names.duplicate } else { fields.firstDuplicate } {
            throw VMMError("field '\(fields[twice].name)' of section '\(section)' occurs twice")
        }
        progress.seen = Array(repeating: false, count: fields.count)
    }

    private func place(_ name: String) -> Int? {
        var name = name
        return name.withUTF8 { name in
            let bytes = UnsafeRawBufferPointer(name)
            return names.map { $0.place(bytes, in: fields) } ?? fields.indices.first { fields.isNamed($0, bytes) }
        }
    }

    private func field(_ name: String, _ type: StateFieldType) throws(VMMError) -> ArraySlice<UInt8> {
        fields.payload(try index(of: name, type))
    }

    /// The index of a field that is asked for.
    private func index(of name: String, _ type: StateFieldType) throws(VMMError) -> Int {
        var index = progress.next
        var text = name
        if index >= fields.count || !text.withUTF8({ fields.isNamed(index, UnsafeRawBufferPointer($0)) }) {
            guard let found = place(name) else { throw VMMError("field '\(name)' of section '\(section)' is missing") }
            index = found
        }
        guard fields.type(index) == type else {
            throw VMMError("field '\(name)' of section '\(section)' has the wrong type")
        }
        progress.seen[index] = true
        progress.next = index + 1
        return index
    }

    public func has(_ name: String) -> Bool { place(name) != nil }

    /// An unsigned field whose value must lie in `range`.
    public func unsigned(_ name: String, in range: ClosedRange<UInt64> = 0...UInt64.max) throws(VMMError) -> UInt64 {
        guard let value = fields.unsigned(try index(of: name, .unsigned)) else {
            throw VMMError("field '\(name)' of section '\(section)' has the wrong length")
        }
        guard range.contains(value) else {
            throw VMMError(
                "field '\(name)' of section '\(section)' is \(value), not in \(range.lowerBound)...\(range.upperBound)")
        }
        return value
    }

    public func bool(_ name: String) throws(VMMError) -> Bool { try unsigned(name, in: 0...1) == 1 }

    public func uint32(_ name: String) throws(VMMError) -> UInt32 {
        UInt32(try unsigned(name, in: 0...UInt64(UInt32.max)))
    }

    public func string(_ name: String) throws(VMMError) -> String {
        guard let value = ByteCursor.text(try field(name, .string)) else {
            throw VMMError("field '\(name)' of section '\(section)' is not UTF-8")
        }
        return value
    }

    /// A byte string whose length must lie in `count`.
    public func bytes(_ name: String, count: ClosedRange<Int> = 0...Int.max) throws(VMMError) -> [UInt8] {
        let payload = try field(name, .bytes)
        guard count.contains(payload.count) else {
            throw VMMError("field '\(name)' of section '\(section)' has the wrong length (\(payload.count) bytes)")
        }
        return Array(payload)
    }

    /// An array whose number of elements must lie in `count`.
    public func array(_ name: String, count: ClosedRange<Int> = 0...Int.max) throws(VMMError) -> [UInt64] {
        var cursor = ByteCursor(try field(name, .unsignedArray))
        var result: [UInt64] = []
        result.reserveCapacity(cursor.remaining / 8)
        while let value = cursor.unsigned(UInt64.self) { result.append(value) }
        guard cursor.isAtEnd, count.contains(result.count) else {
            throw VMMError("field '\(name)' of section '\(section)' has the wrong length (\(result.count) elements)")
        }
        return result
    }

    /// An array of strings, whose number must lie in `count`.
    public func strings(_ name: String, count: ClosedRange<Int> = 0...Int.max) throws(VMMError) -> [String] {
        var cursor = ByteCursor(try field(name, .stringArray))
        var result: [String] = []
        while !cursor.isAtEnd {
            guard let length = cursor.unsigned(UInt32.self), let bytes = cursor.take(Int(length)) else {
                throw VMMError("field '\(name)' of section '\(section)' has the wrong length")
            }
            guard let value = ByteCursor.text(bytes) else {
                throw VMMError("field '\(name)' of section '\(section)' is not UTF-8")
            }
            result.append(value)
        }
        guard count.contains(result.count) else {
            throw VMMError("field '\(name)' of section '\(section)' has the wrong length (\(result.count) elements)")
        }
        return result
    }

    /// Refuses mandatory fields that nobody asked for: they come from a later
    /// version, and to ignore them would lose state.
    public func finish() throws(VMMError) {
        for index in fields.indices where !progress.seen[index] && !fields.isOptional(index) {
            throw VMMError(
                "section '\(section)' has the unknown field '\(fields[index].name)'",
                hint: "It was written by a newer version of this VMM.")
        }
    }

    /// Every field, for `baton-ctl inspect`; each is made when it is asked for.
    public var dump: StateFields { fields }
}

/// Walks over bytes; every accessor returns nil at the end instead of trapping.
public struct ByteCursor {
    @usableFromInline let bytes: ArraySlice<UInt8>
    @usableFromInline var position: Int
    public init(_ bytes: ArraySlice<UInt8>) {
        self.bytes = bytes
        position = bytes.startIndex
    }
    public var isAtEnd: Bool { position == bytes.endIndex }
    @inlinable public var remaining: Int { bytes.endIndex - position }

    /// Bytes as UTF-8; nil when they are not.
    package static func text(_ bytes: ArraySlice<UInt8>) -> String? {
        bytes.withUnsafeBufferPointer { bytes in
            // Nearly all of it is names; `String(validating:)`, which is generic, is slower.
            if bytes.allSatisfy({ $0 < 0x80 }) { return String(decoding: bytes, as: UTF8.self) }
            return String(validating: bytes, as: UTF8.self)
        }
    }

    /// Up to `count` of the next bytes, which stay unread.
    public func peek(_ count: Int) -> ArraySlice<UInt8> { bytes[position...].prefix(count) }

    public mutating func byte() -> UInt8? {
        guard !isAtEnd else { return nil }
        defer { position += 1 }
        return bytes[position]
    }

    public mutating func take(_ count: Int) -> ArraySlice<UInt8>? {
        guard count >= 0, count <= remaining else { return nil }
        defer { position += count }
        return bytes[position..<position + count]
    }

    @inlinable
    public mutating func unsigned<T: FixedWidthInteger & UnsignedInteger>(_ type: T.Type) -> T? {
        let size = MemoryLayout<T>.size
        guard size <= remaining else { return nil }
        var value: T = 0
        for index in 0..<size { value |= T(truncatingIfNeeded: bytes[position + index]) << T(8 * index) }
        position += size
        return value
    }
}
