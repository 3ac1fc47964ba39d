import Glibc

/// One request to a disk, from its start to its end.
///
/// It lives in memory of whoever asks, at an address that does not change until the request has ended
/// (`BlockBackend.onCompletion`): nothing is allocated for one. Its fields are the asker's before the start and after
/// the end, and the block layer's in between.
public struct BlockRequest {
    public enum Kind {
        case read, write
        /// Makes what was written before durable.
        case flush
        /// Gives a range back to the host. What is read there afterwards is not defined.
        case discard
        /// Makes a range read as zeroes.
        case writeZeroes
    }

    // MARK: What is asked for

    public var kind = Kind.flush
    /// Bytes from the beginning of the disk; a multiple of 512, as `length` is. Both are used up.
    public var offset: UInt64 = 0
    /// Bytes that are still to be moved, or of the range.
    public var length: UInt64 = 0
    /// Where the bytes are or go to, `length` in all, none empty. The vectors are the asker's memory, and are used up;
    /// what they point to must stay mapped until the end.
    public var vectors: UnsafeMutablePointer<iovec>?
    public var vectorCount = 0
    /// Whether zeroes may be had by giving the range back to the host.
    public var mayUnmap = false
    /// The asker's own.
    public var tag = 0

    // MARK: What became of it

    /// 0, or the errno value of the failure. ECANCELED: it was given back before it was done, as the disk is held
    /// (`BlockBackend.hold`), and is to be started again, whole.
    public internal(set) var error: Int32 = 0

    // MARK: For engines

    /// The open file. Borrowed.
    public internal(set) var fd: Int32 = -1
    /// How many of the vectors are to be moved now, by one system call. The last may be cut short.
    public internal(set) var pieceCount = 0
    /// Bytes of these.
    public internal(set) var pieceLength = 0
    /// Whether written data is to be durable when it is done.
    public internal(set) var isDurable = false
    /// Whether the data passes the host's page cache by (O_DIRECT), so that no processor copies it.
    public internal(set) var isDirect = false
    /// What the engine's call returned: bytes moved, 0 or more; or a negated errno value.
    public var result = 0
    /// The next of a list that an engine keeps.
    public var next: UnsafeMutablePointer<BlockRequest>?

    // MARK: Of the block layer

    /// Bytes that the last vector of the piece was cut by.
    var cut = 0
    /// It does not meet the alignment that O_DIRECT asks for.
    var isUnaligned = false
    var isLarge = false
    /// What stands in for guest memory in the vectors; freed at the end.
    var copies: UnsafeMutableRawPointer?
    var copiedVectors: UnsafeMutablePointer<iovec>?
    unowned(unsafe) var backend: BlockBackend?

    public init() {}

    /// Bytes that one system call moves at most: an update waits for those that are under way.
    static let pieceLimit = 1 << 20
    private static let vectorLimit = 1024

    var moves: Bool { kind == .read || kind == .write }

    /// Chooses what the next system call moves.
    mutating func beginPiece() {
        guard let vectors else { return }
        var (bytes, count) = (0, 0)
        while count < min(vectorCount, BlockRequest.vectorLimit), bytes < BlockRequest.pieceLimit {
            bytes &+= vectors[count].iov_len
            count &+= 1
        }
        cut = max(0, bytes &- BlockRequest.pieceLimit)
        if cut > 0 { vectors[count &- 1].iov_len &-= cut }
        (pieceCount, pieceLength) = (count, bytes &- cut)
    }

    /// Goes on behind what a system call has moved.
    /// - Parameter moved: bytes, `pieceLength` at most.
    mutating func endPiece(moved: Int) {
        guard var vectors else { return }
        if cut > 0 { vectors[pieceCount &- 1].iov_len &+= cut }
        cut = 0
        var left = moved
        while left > 0, vectorCount > 0 {
            if vectors.pointee.iov_len <= left {
                left &-= vectors.pointee.iov_len
                vectors += 1
                vectorCount &-= 1
            } else {
                vectors.pointee.iov_base = vectors.pointee.iov_base.map { $0 + left }
                vectors.pointee.iov_len &-= left
                left = 0
            }
        }
        self.vectors = vectors
        offset &+= UInt64(moved)
        length &-= UInt64(moved)
    }

    /// Ends a read with zeroes. Between two pieces.
    mutating func clearRest() {
        guard let vectors else { return }
        for index in 0..<vectorCount { memset(vectors[index].iov_base, 0, vectors[index].iov_len) }
        vectorCount = 0
        offset &+= length
        length = 0
    }
}

/// Requests in the order in which they were added, linked by `next`.
public struct BlockRequestList {
    public private(set) var first: UnsafeMutablePointer<BlockRequest>?
    private var last: UnsafeMutablePointer<BlockRequest>?

    public init() {}

    public var isEmpty: Bool { first == nil }

    public mutating func append(_ request: UnsafeMutablePointer<BlockRequest>) {
        request.pointee.next = nil
        if let last { last.pointee.next = request } else { first = request }
        last = request
    }

    public mutating func removeFirst() -> UnsafeMutablePointer<BlockRequest>? {
        guard let request = first else { return nil }
        first = request.pointee.next
        if first == nil { last = nil }
        return request
    }

    /// Takes all, linked by `next`.
    public mutating func removeAll() -> UnsafeMutablePointer<BlockRequest>? {
        defer { (first, last) = (nil, nil) }
        return first
    }
}
