import BatonRuntime
import Foundation
import MicroVM

/// The board's RAM and firmware memory, without a board.
final class TestRAM {
    let layout: RAMLayout
    let space = AddressSpace()

    /// - Parameters:
    ///   - size: bytes; what exceeds 3 GiB is only mapped, and costs nothing until it is touched.
    ///   - firmware: bytes of read-only memory below 4 GiB.
    init(size: Int, firmware: Int = 0) throws {
        layout = RAMLayout(size: UInt64(size))
        for (name, range) in [("low", layout.low), ("high", layout.high)] where !range.isEmpty {
            try space.map(try Self.block(name, range.count), at: range.lowerBound, size: UInt64(range.count))
        }
        if firmware > 0 {
            try space.map(
                try Self.block("firmware", firmware), at: MemoryMap.firmwareEnd - UInt64(firmware),
                size: UInt64(firmware), readOnly: true)
        }
    }

    private static func block(_ name: String, _ size: Int) throws -> RAMBlock {
        let host = try Mapping.map(length: size, alignment: 4096, fd: -1, shared: false, name: name)
        return RAMBlock(
            name: name, usedLength: size, maxLength: size, alignment: 4096, host: host, fd: -1, shared: false,
            origin: "anonymous")
    }

    func load<T: FixedWidthInteger>(_ address: UInt64, as type: T.Type = T.self) -> T {
        guard let host = space.dma(address, length: UInt64(MemoryLayout<T>.size), writing: false) else { return 0 }
        return T(littleEndian: host.loadUnaligned(as: T.self))
    }

    func bytes(_ address: UInt64, _ count: Int) -> [UInt8] {
        guard let host = space.dma(address, length: UInt64(count), writing: false) else { return [] }
        return Array(UnsafeRawBufferPointer(start: host, count: count))
    }

    func store(_ bytes: [UInt8], at address: UInt64) {
        guard let host = space.dma(address, length: UInt64(bytes.count), writing: true) else { return }
        UnsafeMutableRawBufferPointer(start: host, count: bytes.count).copyBytes(from: bytes)
    }
}

extension Array where Element == UInt8 {
    mutating func set<T: FixedWidthInteger>(_ value: T, at offset: Int) {
        replaceSubrange(offset..<offset + MemoryLayout<T>.size, with: littleEndianBytes(value))
    }

    func number<T: FixedWidthInteger>(_ offset: Int, _ type: T.Type) -> T {
        withUnsafeBytes { T(littleEndian: $0.loadUnaligned(fromByteOffset: offset, as: T.self)) }
    }

    /// Where a sequence of bytes begins.
    func find(_ part: [UInt8]) -> Int? {
        guard count >= part.count else { return nil }
        return (0...count - part.count).first { self[$0...].starts(with: part) }
    }
}

/// The same numbers for a seed in each run (SplitMix64).
struct SeededGenerator: RandomNumberGenerator {
    var state: UInt64

    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var z = state
        z = (z ^ z >> 30) &* 0xbf58_476d_1ce4_e5b9
        z = (z ^ z >> 27) &* 0x94d0_49bb_1331_11eb
        return z ^ z >> 31
    }
}
