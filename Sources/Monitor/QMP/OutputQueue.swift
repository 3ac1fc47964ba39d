import BatonRuntime

/// What a monitor has to say and its chardev has not taken yet.
struct OutputQueue {
    private var bytes: [UInt8] = []
    private var start = 0

    var count: Int { bytes.count - start }
    var contents: [UInt8] { Array(bytes[start...]) }
    var isEmpty: Bool { count == 0 }

    mutating func append(_ more: [UInt8]) { bytes.append(contentsOf: more) }

    mutating func removeAll() {
        bytes = []
        start = 0
    }

    /// Gives the chardev as much as it takes.
    mutating func drain(into chardev: Chardev) {
        while start < bytes.count {
            let taken = bytes.withUnsafeBytes { chardev.write(UnsafeRawBufferPointer(rebasing: $0[start...])) }
            guard taken > 0 else { break }
            start += taken
        }
        if start == bytes.count {
            bytes.removeAll(keepingCapacity: bytes.capacity <= 1 << 16)
            start = 0
        } else if start > 1 << 16 {
            bytes.removeFirst(start)
            start = 0
        }
    }
}
