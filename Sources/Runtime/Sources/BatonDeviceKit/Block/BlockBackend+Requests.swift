import BatonBase
import BatonMachine
import CBaton
import Glibc

/// How requests go on their way, and come back.
extension BlockBackend {
    /// How many requests of several pieces are carried out at a time.
    private static let mostLarge = 4

    /// Has the requests carried out by the VM's engines. Called before the first.
    public func use(_ engines: BlockEngines) {
        self.engines = engines
        engine = settings.engine ?? engines.workers
    }

    /// Starts a request, whose range must be within the disk. It may end before this returns.
    public func start(_ request: UnsafeMutablePointer<BlockRequest>) {
        request.pointee.backend = self
        request.pointee.fd = fd
        request.pointee.error = 0
        request.pointee.isUnaligned = false
        request.pointee.isLarge = false
        request.pointee.isDurable = false
        inHand &+= 1
        switch request.pointee.kind {
        case .read: break
        case .flush: if settings.cache.ignoresFlush { return end(request, 0) }
        case .discard: if !settings.discards { return end(request, 0) }
        case .write:
            if restrictsFormat, let code = replaceRestricted(request) { return end(request, code) }
            if settings.detectZeroes != .off { detectZeroes(request) }
            request.pointee.isDurable = !isWriteback && !settings.cache.ignoresFlush
        case .writeZeroes: request.pointee.isDurable = !isWriteback && !settings.cache.ignoresFlush
        }
        request.pointee.isDirect = settings.cache.isDirect
        if settings.cache.isDirect { request.pointee.isUnaligned = !isAligned(request) }
        request.pointee.isLarge = request.pointee.moves && request.pointee.length > UInt64(BlockRequest.pieceLimit)
        enqueue(request)
    }

    /// Sends on their way what was started, and takes what has ended.
    public func submit() {
        if let engines, let engine { engines.submit(engine) }
    }

    private func enqueue(_ request: UnsafeMutablePointer<BlockRequest>) {
        if isHeld { return giveBack(request) }
        if isExclusive || !waiting.isEmpty || request.pointee.isUnaligned && issued > 0 {
            return waiting.append(request)
        }
        begin(request)
    }

    /// Starts a request that nothing before it keeps waiting.
    private func begin(_ request: UnsafeMutablePointer<BlockRequest>) {
        if request.pointee.isLarge {
            guard largeIssued < BlockBackend.mostLarge else { return largeWaiting.append(request) }
            largeIssued &+= 1
        }
        issued &+= 1
        isExclusive = request.pointee.isUnaligned
        issue(request)
    }

    /// Gives an engine the next piece of a request, or all of one that moves nothing.
    private func issue(_ request: UnsafeMutablePointer<BlockRequest>) {
        if request.pointee.moves { request.pointee.beginPiece() }
        guard let engines, let engine else { return end(request, EIO) }
        let isSimple = !request.pointee.isUnaligned && (request.pointee.moves || request.pointee.kind == .flush)
        engines.add(request, to: isSimple ? engine : engines.workers)
    }

    /// The engine is done with what it was given.
    func pieceEnded(_ request: UnsafeMutablePointer<BlockRequest>) {
        let result = request.pointee.result
        if request.pointee.moves {
            request.pointee.endPiece(moved: min(max(0, result), request.pointee.pieceLength))
            // Past the page cache nothing could be asked for from there on.
            if request.pointee.kind == .read, request.pointee.offset == endInSector,
                result == 0 || result > 0 && request.pointee.isDirect
            {
                request.pointee.clearRest()
            }
        }
        if result == -Int(EINTR) || result == -Int(EAGAIN) { return issue(request) }
        var code: Int32 = 0
        if result < 0 {
            code = Int32(truncatingIfNeeded: -result)
        } else if request.pointee.moves, request.pointee.length > 0 {
            // Nothing at all: the file has become shorter than the disk.
            if result > 0, !isHeld { return issue(request) }
            code = result > 0 ? ECANCELED : EIO
        }
        issued &-= 1
        if request.pointee.isLarge { largeIssued &-= 1 }
        isExclusive = false
        end(request, code)
        goOn()
    }

    /// Starts what has waited, as far as it may.
    private func goOn() {
        while !isExclusive, let next = waiting.first {
            if next.pointee.isUnaligned && issued > 0 { return }
            _ = waiting.removeFirst()
            begin(next)
        }
        while !isExclusive, waiting.isEmpty, largeIssued < BlockBackend.mostLarge,
            let next = largeWaiting.removeFirst()
        {
            largeIssued &+= 1
            issued &+= 1
            issue(next)
        }
    }

    private func giveBack(_ request: UnsafeMutablePointer<BlockRequest>) { end(request, ECANCELED) }

    private func end(_ request: UnsafeMutablePointer<BlockRequest>, _ code: Int32) {
        inHand &-= 1
        if let copies = request.pointee.copies {
            free(copies)
            request.pointee.copiedVectors?.deallocate()
            request.pointee.copies = nil
            request.pointee.copiedVectors = nil
        }
        request.pointee.error = code
        engines?.touch(self)
        onCompletion(request)
    }

    // MARK: Draining

    /// Begins nothing any more. What waits, or is large and not done, is given back with ECANCELED; the rest ends as
    /// ever.
    public func hold() {
        guard !isHeld else { return }
        isHeld = true
        while let request = waiting.removeFirst() ?? largeWaiting.removeFirst() { giveBack(request) }
    }

    /// Ends `hold`.
    public func release() { isHeld = false }

    /// Waits until nothing is in hand any more. The caller's thread keeps the VM lock.
    /// - Parameter limit: nanoseconds; nil for none.
    /// - Returns: whether nothing is.
    @discardableResult
    public func finish(limit: Int64? = nil) -> Bool {
        let deadline = limit.map { EventLoop.now + $0 }
        while inHand > 0, let engines {
            let left = deadline.map { $0 - EventLoop.now }
            if let left, left <= 0 { return false }
            engines.waitForAny(limit: left)
        }
        return inHand == 0
    }

    // MARK: Alignment

    private func isAligned(_ request: UnsafeMutablePointer<BlockRequest>) -> Bool {
        if request.pointee.kind == .flush { return true }
        let (memory, unit) = alignment ?? findAlignment()
        guard request.pointee.offset % UInt64(unit) == 0, request.pointee.length % UInt64(unit) == 0 else {
            return false
        }
        guard request.pointee.moves, let vectors = request.pointee.vectors else { return true }
        for index in 0..<request.pointee.vectorCount {
            let vector = vectors[index]
            let address = Int(bitPattern: vector.iov_base)
            if address % memory != 0 || vector.iov_len % unit != 0 { return false }
        }
        return true
    }

    private func findAlignment() -> (memory: Int, offset: Int) {
        var (memory, offset) = (UInt32(0), UInt32(0))
        var found = (memory: 4096, offset: 4096)
        if cbaton_direct_alignment(fd, &memory, &offset) == 0, memory > 0, offset > 0 {
            found = (Int(memory), Int(offset))
        }
        alignment = found
        return found
    }

    // MARK: Contents

    /// Makes a write of zeroes only what it comes to.
    private func detectZeroes(_ request: UnsafeMutablePointer<BlockRequest>) {
        guard let vectors = request.pointee.vectors else { return }
        for index in 0..<request.pointee.vectorCount {
            let vector = vectors[index]
            guard let base = vector.iov_base else { return }
            let bytes = UnsafeRawBufferPointer(start: base, count: vector.iov_len)
            // Most data shows at once what it is.
            guard bytes[0] == 0, vector.iov_len == 1 || memcmp(base, base + 1, vector.iov_len - 1) == 0 else { return }
        }
        request.pointee.kind = .writeZeroes
        request.pointee.mayUnmap = settings.detectZeroes == .unmap && settings.discards
    }

    /// The first and the last sector of the disk, where a range has them.
    private func restrictedSectors(in range: Range<UInt64>) -> [Range<UInt64>] {
        let ends: [Range<UInt64>] = size == 512 ? [0..<512] : [0..<512, (size - 512)..<size]
        return ends.filter { $0.overlaps(range) }
    }

    /// Whether such a sector would make the image look like one of a format, which is logged.
    private func looksFormatted(_ sector: Range<UInt64>, _ bytes: [UInt8]) -> Bool {
        let format =
            (sector.lowerBound == 0 ? ImageFormat.find(head: bytes) : nil)
            ?? (sector.upperBound == size ? ImageFormat.find(tail: bytes) : nil)
        guard let format else { return false }
        Log.guestError("drive '\(id)': a write that would make the image look like \(format) is refused")
        return true
    }

    /// Whether a write of whole sectors, from memory that nobody changes meanwhile, would do that to an image whose format
    /// was guessed.
    func changesFormat(_ vectors: UnsafeBufferPointer<iovec>, offset: UInt64) -> Bool {
        guard restrictsFormat else { return false }
        let length = vectors.reduce(0) { $0 + UInt64($1.iov_len) }
        return restrictedSectors(in: offset..<offset + length).contains { sector in
            guard sector.lowerBound >= offset else { return false }
            let parts = BlockBackend.slice(vectors, from: sector.lowerBound - offset, count: 512)
            return looksFormatted(
                sector, parts.flatMap { UnsafeRawBufferPointer(start: $0.iov_base, count: $0.iov_len) })
        }
    }

    /// Looks at what a request would write to the first or last sector of an image whose format was guessed: what would
    /// make it look like another format is refused, as in QEMU. What is looked at is what is written: the sector's bytes
    /// are copied, so that the guest cannot change them in between.
    /// - Returns: an errno value for a write that is refused; else nil.
    private func replaceRestricted(_ request: UnsafeMutablePointer<BlockRequest>) -> Int32? {
        let range = request.pointee.offset..<request.pointee.offset + request.pointee.length
        let sectors = restrictedSectors(in: range)
        guard !sectors.isEmpty, let vectors = request.pointee.vectors else { return nil }
        let given = UnsafeBufferPointer(start: vectors, count: request.pointee.vectorCount)
        var memory: UnsafeMutableRawPointer?
        guard posix_memalign(&memory, 4096, 4096 * sectors.count) == 0, let memory else { return ENOMEM }
        var parts: [iovec] = []
        var position = range.lowerBound
        for (index, sector) in sectors.enumerated() {
            parts += BlockBackend.slice(given, from: position - range.lowerBound, count: sector.lowerBound - position)
            let copy = memory + index * 4096
            var place = copy
            for vector in BlockBackend.slice(given, from: sector.lowerBound - range.lowerBound, count: 512) {
                guard let base = vector.iov_base else { continue }
                place.copyMemory(from: base, byteCount: vector.iov_len)
                place += vector.iov_len
            }
            if looksFormatted(sector, Array(UnsafeRawBufferPointer(start: copy, count: 512))) {
                free(memory)
                return EPERM
            }
            parts.append(iovec(iov_base: copy, iov_len: 512))
            position = sector.upperBound
        }
        parts += BlockBackend.slice(given, from: position - range.lowerBound, count: range.upperBound - position)
        let copied = UnsafeMutablePointer<iovec>.allocate(capacity: parts.count)
        copied.initialize(from: parts, count: parts.count)
        request.pointee.copies = memory
        request.pointee.copiedVectors = copied
        request.pointee.vectors = copied
        request.pointee.vectorCount = parts.count
        return nil
    }

    /// The parts of vectors that have `count` bytes from `start` on.
    private static func slice(_ vectors: UnsafeBufferPointer<iovec>, from start: UInt64, count: UInt64) -> [iovec] {
        var result: [iovec] = []
        var skip = Int(start)
        var left = Int(count)
        for vector in vectors where left > 0 {
            if vector.iov_len <= skip {
                skip -= vector.iov_len
                continue
            }
            let length = min(vector.iov_len - skip, left)
            result.append(iovec(iov_base: vector.iov_base.map { $0 + skip }, iov_len: length))
            left -= length
            skip = 0
        }
        return result
    }
}
