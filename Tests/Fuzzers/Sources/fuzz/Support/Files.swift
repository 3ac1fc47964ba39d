import BatonRuntime
import CBaton
import Glibc

/// A file in memory that is written anew for each input.
final class MemoryFile {
    let fd: Int32
    /// By which the process itself opens it.
    var path: String { "/proc/self/fd/\(fd)" }

    init(_ name: String) throws {
        fd = cbaton_memfd_create(name, 0)
        guard fd >= 0 else { throw HarnessError("memfd_create") }
    }

    func write(_ bytes: [UInt8]) {
        ftruncate(fd, 0)
        _ = bytes.withUnsafeBytes { pwrite(fd, $0.baseAddress, $0.count, 0) }
    }

    /// Makes it so long, of zeroes.
    func fill(length: Int) {
        ftruncate(fd, 0)
        ftruncate(fd, off_t(length))
    }
}

func writeFile(_ path: String, _ bytes: [UInt8]) throws {
    guard let file = fopen(path, "w") else { throw HarnessError("cannot write \(path)") }
    defer { fclose(file) }
    guard fwrite(bytes, 1, bytes.count, file) == bytes.count else { throw HarnessError("cannot write \(path)") }
}

/// Two connected sockets.
func socketPair(_ type: __socket_type) throws -> (Int32, Int32) {
    var ends: [Int32] = [-1, -1]
    guard socketpair(AF_UNIX, Int32(type.rawValue | SOCK_CLOEXEC.rawValue), 0, &ends) == 0 else {
        throw HarnessError("socketpair: \(errno)")
    }
    return (ends[0], ends[1])
}

/// The lowest descriptor that is free: as long as none is lost it is the same before and after.
func lowestFreeDescriptor() -> Int32 {
    let fd = open("/dev/null", O_RDONLY | O_CLOEXEC)
    close(fd)
    return fd
}
