import BatonBase
import BatonMachine
import CBaton
import Glibc

/// What an executable or shared object says that it needs of a sandbox, read from its file: none of its code runs.
///
/// | symbol | what it says |
/// |---|---|
/// | `baton_system_calls` | a table of `struct cbaton_system_call`, which a call without a name ends: the runtime's |
/// | `baton_module_needs_system_call_N` | the system call with the number N (`BATON_NEEDS_SYSTEM_CALL`) |
/// | `baton_module_needs_capability_N` | the capability with the number N (`BATON_NEEDS_CAPABILITY`) |
/// | `baton_module_needs_paths` | paths, each ended by a zero byte, and all by an empty one (`BATON_NEEDS_PATHS`); with a slash at its end it is a directory with all below it |
struct ImageNeeds {
    private(set) var systemCalls = SystemCallSet()
    private(set) var capabilities: UInt64 = 0
    private(set) var paths: [String] = []

    private static let table = Array("baton_system_calls\0".utf8)
    private static let pathsSymbol = Array("baton_module_needs_paths\0".utf8)
    private static let callPrefix = Array("baton_module_needs_system_call_".utf8)
    private static let capabilityPrefix = Array("baton_module_needs_capability_".utf8)
    private static let mostPaths = 64

    /// - Parameter fd: an open file. Borrowed.
    /// - Returns: nil for what is no ELF file of 64 bits.
    init?(fd: Int32) {
        guard let length = try? Mapping.fileLength(fd), length >= 64,
            let base = mmap(nil, length, PROT_READ, MAP_PRIVATE, fd, 0), base != MAP_FAILED
        else { return nil }
        defer { munmap(base, length) }
        let file = ELFBytes(base: UnsafeRawPointer(base), count: length)
        guard file.word32(0) == 0x464c_457f, file.byte(4) == 2, file.byte(5) == 1 else { return nil }
        _ = file.forEachSymbolOfBaton { symbol in if symbol.isDefined { take(symbol, of: file) } }
    }

    /// Nothing.
    init() {}

    /// Notes what a symbol says, if it is one that says something.
    mutating func take(_ symbol: ELFBytes.Symbol, of file: ELFBytes) {
        let (name, address) = (symbol.name, symbol.address)
        func number(_ prefix: [UInt8]) -> UInt32? {
            file.hasPrefix(prefix, at: name) ? UInt32(file.string(at: name &+ UInt64(prefix.count))) : nil
        }
        if let call = number(ImageNeeds.callPrefix) {
            systemCalls.insert(call)
        } else if let capability = number(ImageNeeds.capabilityPrefix), capability < 64 {
            capabilities |= 1 << UInt64(capability)
        } else if file.hasPrefix(ImageNeeds.table, at: name) {
            guard var entry = ImageNeeds.offset(of: address, file) else { return }
            for _ in 0..<1024 {
                guard let first = file.byte(entry), first != 0, let number = file.word32(entry &+ 28) else { return }
                systemCalls.insert(number)
                entry &+= 32
            }
        } else if file.hasPrefix(ImageNeeds.pathsSymbol, at: name) {
            guard var at = ImageNeeds.offset(of: address, file) else { return }
            while paths.count < ImageNeeds.mostPaths, case let path = file.string(at: at), path.hasPrefix("/") {
                paths.append(path)
                at &+= UInt64(path.utf8.count) &+ 1
            }
        }
    }

    /// Where in the file that is which is mapped at an address.
    private static func offset(of address: UInt64, _ file: ELFBytes) -> UInt64? {
        guard let headers = file.word64(32), let entrySize = file.word16(54), let count = file.word16(56) else {
            return nil
        }
        for index in 0..<UInt64(count) {
            let header = headers &+ index &* UInt64(entrySize)
            guard file.word32(header) == 1, let offset = file.word64(header &+ 8),
                let start = file.word64(header &+ 16), let size = file.word64(header &+ 32),
                address >= start, address - start < size
            else { continue }
            return offset &+ (address - start)
        }
        return nil
    }
}
