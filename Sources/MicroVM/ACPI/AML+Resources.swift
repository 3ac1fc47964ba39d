import BatonRuntime

/// What a device uses, for `_CRS` (ACPI specification 6.5, 6.4).
extension AML {
    /// A descriptor of a resource template.
    struct Resource {
        let bytes: [UInt8]

        static func memory(_ address: UInt64, size: UInt64) -> Resource {
            let writable: UInt8 = 1
            return Resource(
                bytes: [0x86, 9, 0, writable] + littleEndianBytes(UInt32(address)) + littleEndianBytes(UInt32(size)))
        }

        static func ports(_ first: UInt64, count: UInt64) -> Resource {
            let (decodes16Bits, alignment): (UInt8, UInt8) = (1, 1)
            let port = littleEndianBytes(UInt16(first))
            return Resource(bytes: [0x47, decodes16Bits] + port + port + [alignment, UInt8(count)])
        }

        /// An interrupt of an ISA device: edge triggered, active high, not shared.
        static func isaInterrupt(_ number: Int) -> Resource {
            Resource(bytes: [0x22] + littleEndianBytes(UInt16(1) << UInt16(number)))
        }

        /// A global system interrupt, active high, not shared.
        static func interrupt(_ number: Int, isEdge: Bool = false) -> Resource {
            let (consumer, edge): (UInt8, UInt8) = (1, 2)
            return Resource(
                bytes: [0x89, 6, 0, consumer | (isEdge ? edge : 0), 1] + littleEndianBytes(UInt32(number)))
        }

        private static let fixedBothEnds: UInt8 = 0b1100

        static func busNumbers(_ range: ClosedRange<UInt16>) -> Resource {
            let (busNumbers, noFlags): (UInt8, UInt8) = (2, 0)
            let words: [UInt16] = [0, range.lowerBound, range.upperBound, 0, range.upperBound - range.lowerBound + 1]
            return Resource(
                bytes: [0x88, 13, 0, busNumbers, fixedBothEnds, noFlags] + words.flatMap { littleEndianBytes($0) })
        }

        /// Addresses for what is behind a bridge. Whatever lies below 4 GiB has 32 bits, as some firmware reads no
        /// others.
        static func window(_ range: Range<UInt64>) -> Resource {
            range.upperBound <= 1 << 32 ? window32(range) : window64(range)
        }

        static func window64(_ range: Range<UInt64>) -> Resource {
            let words: [UInt64] = [0, range.lowerBound, range.upperBound - 1, 0, range.upperBound - range.lowerBound]
            return Resource(bytes: [0x8a, 43, 0] + windowFlags + words.flatMap { littleEndianBytes($0) })
        }

        private static func window32(_ range: Range<UInt64>) -> Resource {
            let words: [UInt64] = [0, range.lowerBound, range.upperBound - 1, 0, range.upperBound - range.lowerBound]
            return Resource(bytes: [0x87, 23, 0] + windowFlags + words.flatMap { littleEndianBytes(UInt32($0)) })
        }

        /// Memory, fixed, writable, not cacheable.
        private static var windowFlags: [UInt8] { [0, fixedBothEnds, 1] }
    }

    /// A resource template: a buffer with an end tag, whose checksum may be 0.
    static func resources(_ resources: [Resource]) -> AML {
        .buffer(resources.flatMap(\.bytes) + [0x79, 0])
    }
}
