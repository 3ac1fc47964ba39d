@testable import BatonCPR
@testable import BatonMachine
import BatonRuntime
import CBaton

/// Containers of sections: what is damaged on purpose, with lengths and checksums that fit again, so that what is behind
/// these is reached.
enum Sections {
    private static let headerSize = 32

    static func crc(_ bytes: ArraySlice<UInt8>, from start: UInt32 = 0) -> UInt32 {
        bytes.withUnsafeBytes { cbaton_crc32c(start, $0.baseAddress, $0.count) }
    }

    /// Puts the right checksums, and the right length of all, into what looks like a container.
    static func mended(_ input: [UInt8]) -> [UInt8] {
        guard input.count >= headerSize else { return input }
        var bytes = input
        bytes.store(little: UInt64(bytes.count - headerSize), at: 16)
        bytes.store(little: 0 as UInt32, at: 28)
        var place = headerSize
        var count: UInt32 = 0
        while bytes.count - place >= 16 {
            let name = Int(bytes.load(place, UInt16.self))
            let payload = Int(bytes.load(place + 8, UInt32.self))
            let end = place + 16 + name + payload
            guard end <= bytes.count else { break }
            let head = crc(bytes[place..<place + 12])
            bytes.store(little: crc(bytes[place + 16..<end], from: head), at: place + 12)
            place = end
            count += 1
        }
        // One input in a few may say something else.
        if bytes[12] != 0xff { bytes.store(little: count, at: 12) }
        bytes.store(little: crc(bytes[..<24]), at: 24)
        return bytes
    }
}

func savedState(_ device: any Device) -> [UInt8] {
    var writer = StateWriter()
    device.save(to: &writer)
    return writer.encoded()
}

func loadState(_ state: [UInt8], into device: any Device) throws(VMMError) {
    try device.load(
        from: StateReader(section: device.stateName, version: device.stateVersion, payload: state[...]))
}

/// The fields of a section, which an input changes: their values, types, names and order.
struct EditableState {
    struct Field {
        var name: [UInt8]
        var type: UInt8
        var flags: UInt8
        var payload: [UInt8]
    }
    var fields: [Field] = []

    init(_ payload: [UInt8]) {
        var place = 0
        while place < payload.count {
            let name = Int(payload[place])
            let type = place + 1 + name
            let length = Int(payload.load(type + 2, UInt32.self))
            let start = type + 6
            fields.append(
                Field(
                    name: Array(payload[place + 1..<type]), type: payload[type], flags: payload[type + 1],
                    payload: Array(payload[start..<start + length])))
            place = start + length
        }
    }

    var bytes: [UInt8] {
        var result: [UInt8] = []
        for field in fields {
            result.append(UInt8(truncatingIfNeeded: field.name.count))
            result += field.name
            result += [field.type, field.flags]
            result += little(UInt32(truncatingIfNeeded: field.payload.count))
            result += field.payload
        }
        return result
    }

    /// Carries out one change that the input describes.
    mutating func edit(_ input: inout Input) {
        guard !fields.isEmpty else { return }
        let index = Int(input.number(UInt16.self)) % fields.count
        switch input.byte() % 10 {
        case 0, 1, 2:
            // A number, or one of an array's.
            let place = 8 * Int(input.byte())
            let interesting: [UInt64] = [
                0, 1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 63, 64, 255, 256, 1023, 1024, 4095, 4096, 65535, 65536,
                1 << 31, 0xffff_ffff, 1 << 32, 1 << 62, UInt64(Int64.max), 1 << 63, .max - 1, .max,
            ]
            let value = input.bool() ? input.choice(interesting) : input.number(UInt64.self)
            guard place + 8 <= fields[index].payload.count else { return }
            fields[index].payload.store(little: value, at: place)
        case 3, 4:
            let place = Int(input.number(UInt16.self))
            guard place < fields[index].payload.count else { return }
            fields[index].payload[place] = input.byte()
        case 5:
            let count = Int(input.byte())
            fields[index].payload += input.take(count)
        case 6: fields[index].payload.removeLast(min(fields[index].payload.count, Int(input.number(UInt16.self))))
        case 7: fields.remove(at: index)
        case 8: fields[index].type = input.byte()
        default:
            let count = Int(input.byte())
            fields.insert(
                Field(name: input.take(count), type: input.byte(), flags: input.byte(), payload: []), at: index)
        }
    }
}
