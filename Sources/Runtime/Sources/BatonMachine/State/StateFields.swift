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
        // The guest may wait for this: no slice is made of what is only looked at.
        let problem = payload.withUnsafeBytes { bytes -> Problem? in
            var place = 0
            while place < bytes.count {
                let name = place + 1
                let type = name + Int(bytes[place])
                guard type > name, type + StateFields.headLength <= bytes.count else { return .damage }
                let length = bytes.loadUnaligned(fromByteOffset: type + 2, as: UInt32.self).littleEndian
                let end = type + StateFields.headLength + Int(length)
                guard end <= bytes.count, StateFields.isText(UnsafeRawBufferPointer(rebasing: bytes[name..<type]))
                else {
                    return .damage
                }
                guard StateFieldType(rawValue: bytes[type]) != nil else {
                    return .type(bytes[type], field: String(decoding: bytes[name..<type], as: UTF8.self))
                }
                starts.append(UInt32(truncatingIfNeeded: place))
                place = end
            }
            return nil
        }
        switch problem {
        case nil: break
        case .damage: throw VMMError("section '\(section)' is damaged")
        case .type(let type, let field):
            throw VMMError("field '\(field)' of section '\(section)' has the unknown type \(type)")
        }
    }

    private enum Problem {
        case damage
        case type(UInt8, field: String)
    }

    /// Bytes between a field's name and its payload: type, flags and length.
    private static let headLength = 6

    private static func isText(_ bytes: UnsafeRawBufferPointer) -> Bool {
        bytes.allSatisfy { $0 < 0x80 } || String(validating: bytes, as: UTF8.self) != nil
    }

    /// The index of a name that occurs before; for few fields.
    var firstDuplicate: Int? {
        bytes.withUnsafeBytes { bytes in
            guard let base = bytes.baseAddress else { return nil }
            return indices.first { index in
                let own = base + Int(starts[index])
                // The length of a name comes before it.
                let length = Int(bytes[Int(starts[index])]) + 1
                return (0..<index).contains { earlier in
                    let other = base + Int(starts[earlier])
                    // Nearly all differ in their length or first letter.
                    return memcmp(other, own, 2) == 0 && memcmp(other, own, length) == 0
                }
            }
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
        let start = afterName(index) + StateFields.headLength
        let end = index + 1 < starts.count ? self.start(index + 1) : bytes.endIndex
        return bytes[start..<end]
    }

    /// A payload of eight bytes; nil when it has not as many.
    func unsigned(_ index: Int) -> UInt64? {
        bytes.withUnsafeBytes { bytes in
            let start = Int(starts[index])
            let payload = start + 1 + Int(bytes[start]) + StateFields.headLength
            let end = index + 1 < starts.count ? Int(starts[index + 1]) : bytes.count
            guard end - payload == 8 else { return nil }
            return bytes.loadUnaligned(fromByteOffset: payload, as: UInt64.self).littleEndian
        }
    }

    func isNamed(_ index: Int, _ name: UnsafeRawBufferPointer) -> Bool {
        bytes.withUnsafeBytes { bytes in
            let start = Int(starts[index])
            guard let base = bytes.baseAddress, let wanted = name.baseAddress, Int(bytes[start]) == name.count else {
                return false
            }
            return memcmp(base + start + 1, wanted, name.count) == 0
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
