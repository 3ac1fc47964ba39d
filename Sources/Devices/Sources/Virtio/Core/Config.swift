extension Array where Element == UInt8 {
    /// Stores a little-endian integer of a configuration space.
    mutating func put<T: FixedWidthInteger>(_ value: T, at offset: Int) {
        precondition(offset + MemoryLayout<T>.size <= count)
        for index in 0..<MemoryLayout<T>.size {
            self[offset + index] = UInt8(truncatingIfNeeded: value >> T(8 * index))
        }
    }
}
