import BatonRuntime

/// A piece of AML, ACPI's byte code (ACPI specification 6.5, chapter 20): a value of this type is one term, whole.
struct AML {
    let bytes: [UInt8]

    init(_ bytes: [UInt8]) { self.bytes = bytes }

    /// An operation and its operands.
    init(_ operation: UInt8..., operands: [AML]) { bytes = operation + AML.join(operands) }

    /// An operation whose operands have a length before them.
    init(_ operation: UInt8..., package: [AML]) { bytes = operation + AML.withLength(AML.join(package)) }

    /// A byte of an operation that is no term of its own.
    static func raw(_ byte: UInt8) -> AML { AML([byte]) }

    // MARK: Names

    /// A name: segments of up to four characters with dots between, `\` before for one from the root.
    static func path(_ text: String) -> AML {
        var name = text[...]
        var bytes: [UInt8] = []
        if name.first == "\\" {
            bytes.append(0x5c)
            name.removeFirst()
        }
        let segments = name.split(separator: ".")
        switch segments.count {
        case 0: bytes.append(0x00)
        case 1: break
        case 2: bytes.append(0x2e)
        default: bytes += [0x2f, UInt8(segments.count)]
        }
        for segment in segments { bytes += AML.segment(segment) }
        return AML(bytes)
    }

    private static func segment(_ text: Substring) -> [UInt8] {
        precondition((1...4).contains(text.utf8.count), "AML names have segments of four characters")
        return Array(text.utf8) + [UInt8](repeating: UInt8(ascii: "_"), count: 4 - text.utf8.count)
    }

    // MARK: Data

    static func integer(_ value: UInt64) -> AML {
        switch value {
        case 0, 1: AML([UInt8(value)])
        case ...0xff: AML([0x0a, UInt8(value)])
        case ...0xffff: AML([0x0b] + littleEndianBytes(UInt16(value)))
        case ...0xffff_ffff: AML([0x0c] + littleEndianBytes(UInt32(value)))
        default: AML([0x0e] + littleEndianBytes(value))
        }
    }

    static func integer(_ value: Int) -> AML { integer(UInt64(value)) }

    static func string(_ text: String) -> AML { AML([0x0d] + Array(text.utf8) + [0]) }

    static func buffer(_ content: [UInt8]) -> AML { AML(0x11, package: [integer(content.count), AML(content)]) }

    static func package(_ elements: [AML]) -> AML {
        precondition(elements.count <= 0xff)
        return AML(0x12, package: [raw(UInt8(elements.count))] + elements)
    }

    /// A device's identifier such as PNP0501, packed into a number: three letters of five bits, four digits.
    static func eisaID(_ text: String) -> AML {
        let characters = Array(text.utf8)
        precondition(characters.count == 7)
        let letters = characters[..<3].reduce(UInt32(0)) { $0 << 5 | UInt32($1 & 0x1f) }
        let digits = characters[3...].reduce(UInt32(0)) { value, digit in
            value << 4 | UInt32(digit <= UInt8(ascii: "9") ? digit - UInt8(ascii: "0") : digit - UInt8(ascii: "A") + 10)
        }
        return AML([0x0c] + littleEndianBytes((letters << 16 | digits).byteSwapped))
    }

    /// A UUID, whose first three groups are numbers in little endian.
    static func uuid(_ text: String) -> AML {
        let digits = text.filter { $0 != "-" }.compactMap { $0.hexDigitValue }
        precondition(digits.count == 32)
        let bytes = stride(from: 0, to: 32, by: 2).map { UInt8(digits[$0] << 4 | digits[$0 + 1]) }
        return .buffer([3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15].map { bytes[$0] })
    }

    // MARK: Declarations

    static func name(_ name: String, _ value: AML) -> AML { AML(0x08, operands: [path(name), value]) }

    static func scope(_ name: String, _ terms: [AML]) -> AML { AML(0x10, package: [path(name)] + terms) }

    static func device(_ name: String, _ terms: [AML]) -> AML { AML(0x5b, 0x82, package: [path(name)] + terms) }

    /// - Parameters:
    ///   - arguments: 0 to 7.
    ///   - isSerialized: whether one call waits for another; needed where it makes names.
    static func method(_ name: String, arguments: Int, isSerialized: Bool = false, _ terms: [AML]) -> AML {
        let flags = UInt8(arguments) | (isSerialized ? 8 : 0)
        return AML(0x14, package: [path(name), raw(flags)] + terms)
    }

    /// Registers in memory.
    static func memoryRegion(_ name: String, at address: UInt64, length: Int) -> AML {
        let systemMemory = raw(0)
        return AML(0x5b, 0x80, operands: [path(name), systemMemory, integer(address), integer(length)])
    }

    /// A field of 32 bits at a region's beginning, which is accessed as one.
    static func doubleWordField(region: String, name: String) -> AML {
        let (doubleWordAccess, writeAsZeroes): (UInt8, UInt8) = (3, 2 << 5)
        let bits = raw(32)
        return AML(0x5b, 0x81, package: [path(region), raw(doubleWordAccess | writeAsZeroes), path(name), bits])
    }

    // MARK: Encoding

    static func join(_ terms: [AML]) -> [UInt8] { terms.flatMap(\.bytes) }

    /// A package's length and content. The length counts its own bytes: one for up to 63, else the low four bits in
    /// the first and the others in one to three more, whose number is in the first one's two high bits.
    static func withLength(_ content: [UInt8]) -> [UInt8] {
        let short = content.count + 1
        if short < 0x40 { return [UInt8(short)] + content }
        var more = 1
        while short + more >= 1 << (4 + 8 * more) { more += 1 }
        precondition(more <= 3)
        let length = short + more
        var bytes = [UInt8(more << 6 | length & 0xf)]
        for index in 0..<more { bytes.append(UInt8(truncatingIfNeeded: length >> (4 + 8 * index))) }
        return bytes + content
    }
}
