import BatonBase
import Glibc

/// The fields of a section, by the places that they have in its payload: four
/// bytes a field, so that what a file costs is a small multiple of its size.
public struct StateFields: RandomAccessCollection {
    /// A field's name, type and value.
    public typealias Element = (name: String, type: StateFieldType, payload: ArraySlice<UInt8>)

    private let bytes: ArraySlice<UInt8>
    /// Where each field begins, counted from the payload's beginning.
    private var starts: [UInt32] = []

    /// Walks over the whole payload and checks its structure.
    init(_ payload: ArraySlice<UInt8>, section: String) throws(VMMError) {
        bytes = payload
        // Of a device at once; of a file that has millions as they come.
        starts.reserveCapacity(Swift.min(payload.count / 8, 32))
        var cursor = ByteCursor(payload)
        while !cursor.isAtEnd {
            let start = payload.count - cursor.remaining
            guard let nameLength = cursor.byte(), nameLength > 0, let name = cursor.take(Int(nameLength)),
                ByteCursor.isText(name), let rawType = cursor.byte(), cursor.byte() != nil,
                let length = cursor.unsigned(UInt32.self), cursor.take(Int(length)) != nil
            else { throw VMMError("section '\(section)' is damaged") }
            guard StateFieldType(rawValue: rawType) != nil else {
                throw VMMError(
                    "field '\(String(decoding: name, as: UTF8.self))' of section '\(section)' "
                        + "has the unknown type \(rawType)")
            }
            starts.append(UInt32(truncatingIfNeeded: start))
        }
    }

    public var startIndex: Int { 0 }
    public var endIndex: Int { starts.count }
    public subscript(index: Int) -> Element {
        (String(decoding: name(index), as: UTF8.self), type(index), payload(index))
    }

    // Where the parts of a field are, which `init` has checked.
    private func start(_ index: Int) -> Int { bytes.startIndex + Int(starts[index]) }
    private func afterName(_ index: Int) -> Int { start(index) + 1 + Int(bytes[start(index)]) }

    func name(_ index: Int) -> ArraySlice<UInt8> { bytes[start(index) + 1..<afterName(index)] }
    func type(_ index: Int) -> StateFieldType { StateFieldType(rawValue: bytes[afterName(index)]) ?? .bytes }
    func isOptional(_ index: Int) -> Bool { bytes[afterName(index) + 1] & 1 != 0 }
    func payload(_ index: Int) -> ArraySlice<UInt8> {
        let start = afterName(index) + 6
        let end = index + 1 < starts.count ? self.start(index + 1) : bytes.endIndex
        return bytes[start..<end]
    }

    func isNamed(_ index: Int, _ name: UnsafeRawBufferPointer) -> Bool {
        let length = Int(bytes[start(index)])
        guard length == name.count, let wanted = name.baseAddress else { return false }
        return self.name(index).withUnsafeBytes { (found: UnsafeRawBufferPointer) -> Bool in
            guard let found = found.baseAddress else { return false }
            return memcmp(found, wanted, length) == 0
        }
    }

    func haveSameName(_ one: Int, _ other: Int) -> Bool {
        name(other).withUnsafeBytes { isNamed(one, $0) }
    }
}

/// Finds fields by name: a table of places, twice as long as there are fields.
/// The hash has a seed of the process, so that no file is made to collide.
struct FieldNames {
    /// The index of a field plus 1; 0 where there is none.
    private var table: [UInt32]
    private let mask: Int
    /// A field whose name another has too.
    private(set) var duplicate: Int?

    init(_ fields: StateFields) {
        var size = 64
        while size < 2 * fields.count { size *= 2 }
        table = Array(repeating: 0, count: size)
        mask = size - 1
        for index in fields.indices {
            var slot = fields.name(index).withUnsafeBytes { FieldNames.hash($0) } & mask
            while table[slot] != 0 {
                if fields.haveSameName(Int(table[slot]) - 1, index) {
                    duplicate = index
                    return
                }
                slot = (slot + 1) & mask
            }
            table[slot] = UInt32(truncatingIfNeeded: index + 1)
        }
    }

    func place(_ name: UnsafeRawBufferPointer, in fields: StateFields) -> Int? {
        var slot = FieldNames.hash(name) & mask
        while table[slot] != 0 {
            let index = Int(table[slot]) - 1
            if fields.isNamed(index, name) { return index }
            slot = (slot + 1) & mask
        }
        return nil
    }

    private static func hash(_ name: UnsafeRawBufferPointer) -> Int {
        var hasher = Hasher()
        hasher.combine(bytes: name)
        return hasher.finalize()
    }
}
