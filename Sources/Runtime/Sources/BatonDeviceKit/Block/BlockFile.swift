import CBaton
import Glibc

/// Carries out requests by blocking system calls. In any thread: it changes nothing but the request's result.
enum BlockFile {
    /// - Returns: as `BlockRequest.result` has it. Reads and writes are of a piece, everything else of the whole range.
    static func carryOut(_ request: UnsafeMutablePointer<BlockRequest>) -> Int {
        guard request.pointee.isUnaligned else { return call(request) }
        // Nothing else of this file is in hand now, so its flags may be changed, and the page cache passed through.
        let fd = request.pointee.fd
        guard cbaton_set_direct(fd, 0) == 0 else { return -Int(errno) }
        var result = call(request)
        if result >= 0, request.pointee.kind != .read, fdatasync(fd) != 0 { result = -Int(errno) }
        posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED)
        guard cbaton_set_direct(fd, 1) == 0 else { return -Int(errno) }
        return result
    }

    private static func call(_ request: UnsafeMutablePointer<BlockRequest>) -> Int {
        let fd = request.pointee.fd
        let offset = off_t(request.pointee.offset)
        let length = off_t(request.pointee.length)
        switch request.pointee.kind {
        case .read:
            return checked(preadv(fd, request.pointee.vectors, Int32(request.pointee.pieceCount), offset))
        case .write:
            let isDurable: Int32 = request.pointee.isDurable ? 1 : 0
            return checked(
                cbaton_pwritev(fd, request.pointee.vectors, Int32(request.pointee.pieceCount), offset, isDurable))
        case .flush: return checked(Int(fdatasync(fd)))
        case .discard: return discard(fd, offset, length)
        case .writeZeroes:
            let result = writeZeroes(fd, offset, length, mayUnmap: request.pointee.mayUnmap)
            return result >= 0 && request.pointee.isDurable ? checked(Int(fdatasync(fd))) : result
        }
    }

    private static func checked(_ result: Int) -> Int { result < 0 ? -Int(errno) : result }

    /// It is a hint: a file or device that cannot do it goes without.
    private static func discard(_ fd: Int32, _ offset: off_t, _ length: off_t) -> Int {
        if cbaton_punch_hole(fd, offset, length) == 0 { return 0 }
        return [EOPNOTSUPP, EINVAL, ENODEV].contains(errno) ? 0 : -Int(errno)
    }

    private static func writeZeroes(_ fd: Int32, _ offset: off_t, _ length: off_t, mayUnmap: Bool) -> Int {
        if mayUnmap, cbaton_punch_hole(fd, offset, length) == 0 { return 0 }
        if cbaton_zero_range(fd, offset, length) == 0 { return 0 }
        if errno == ENOSPC { return -Int(ENOSPC) }
        let size = 1 << 16
        var memory: UnsafeMutableRawPointer?
        guard posix_memalign(&memory, 4096, size) == 0, let memory else { return -Int(ENOMEM) }
        defer { free(memory) }
        memset(memory, 0, size)
        var position = offset
        while position < offset + length {
            let written = pwrite(fd, memory, min(size, Int(offset + length - position)), position)
            if written < 0, errno == EINTR { continue }
            guard written > 0 else { return written < 0 ? -Int(errno) : -Int(EIO) }
            position += off_t(written)
        }
        return 0
    }
}
