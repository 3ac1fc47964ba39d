import BatonBase
import BatonMachine
import Glibc

/// What the ELF file of a module says about itself, read before any of its
/// code is mapped to run.
struct ModuleImage {
    /// Whether it exports `baton_module_query`.
    let exportsQuery: Bool
    /// The fingerprint of the runtime that it refers to; nil for a module that
    /// does not link the runtime.
    let stamp: String?

    /// Object types that it says it provides, with `_` for each `-`.
    let objectTypes: Set<String>
    /// What it needs of a sandbox.
    let needs: ImageNeeds

    private static let objectPrefix = Array("baton_module_provides_object_".utf8)
    private static let stampPrefix = Array("baton_runtime_stamp_".utf8)
    /// With its end, as it is a whole name.
    private static let query = Array("baton_module_query\0".utf8)
    /// The ELF machine that this process was built for.
    #if arch(x86_64)
    private static let machine: UInt16 = 62
    #elseif arch(arm64)
    private static let machine: UInt16 = 183
    #else
    private static let machine: UInt16 = 243
    #endif

    /// Reads the dynamic symbols of an open file. Every offset is checked
    /// against the file's size.
    init(fd: Int32, path: String) throws(VMMError) {
        let notModule = VMMError("'\(path)' is not a Baton module")
        let length = try Mapping.fileLength(fd)
        guard length >= 64 else { throw notModule }
        guard let base = mmap(nil, length, PROT_READ, MAP_PRIVATE, fd, 0), base != MAP_FAILED else {
            throw .system("module '\(path)' cannot be read")
        }
        defer { munmap(base, length) }
        let file = ELFBytes(base: UnsafeRawPointer(base), count: length)

        guard file.word32(0) == 0x464c_457f, file.byte(4) == 2, file.byte(5) == 1 else {
            throw VMMError("'\(path)' is not a 64-bit little-endian ELF file, so it is not a Baton module")
        }
        guard let machine = file.word16(18), machine == ModuleImage.machine else {
            throw VMMError(
                "module '\(path)' is for another architecture (ELF machine \(file.word16(18) ?? 0), "
                    + "this is \(ModuleImage.machine))",
                hint: "Build the module for the architecture of this host.")
        }
        guard file.word16(16) == 3 else {
            throw VMMError("'\(path)' is not a shared object, so it is not a Baton module")
        }
        try ModuleImage.checkSegments(file, path)
        guard let sections = file.word64(40), let entrySize = file.word16(58), let count = file.word16(60),
            entrySize >= 64, file.contains(sections, UInt64(entrySize) * UInt64(count))
        else { throw VMMError("module '\(path)' is truncated") }

        var exportsQuery = false
        var stamp: String?
        var objectTypes: Set<String> = []
        var needs = ImageNeeds()
        let isWhole = file.forEachSymbolOfBaton { symbol in
            if !symbol.isDefined {
                if file.hasPrefix(ModuleImage.stampPrefix, at: symbol.name) {
                    stamp = file.string(at: symbol.name &+ UInt64(ModuleImage.stampPrefix.count))
                }
            } else if file.hasPrefix(ModuleImage.query, at: symbol.name) {
                exportsQuery = true
            } else if file.hasPrefix(ModuleImage.objectPrefix, at: symbol.name) {
                objectTypes.insert(file.string(at: symbol.name &+ UInt64(ModuleImage.objectPrefix.count)))
            } else {
                needs.take(symbol, of: file)
            }
        }
        guard isWhole else { throw notModule }
        self.exportsQuery = exportsQuery
        self.stamp = stamp
        self.objectTypes = objectTypes
        self.needs = needs
    }

    /// Refuses a file that ends before what it says is to be mapped: an access
    /// to such a page kills the process.
    private static func checkSegments(_ file: ELFBytes, _ path: String) throws(VMMError) {
        let truncated = VMMError("module '\(path)' is truncated")
        guard let headers = file.word64(32), let entrySize = file.word16(54), let count = file.word16(56) else {
            throw truncated
        }
        for index in 0..<UInt64(count) {
            let header = headers &+ index &* UInt64(entrySize)
            guard let type = file.word32(header), let offset = file.word64(header &+ 8),
                let size = file.word64(header &+ 32), type != 1 || file.contains(offset, size)
            else { throw truncated }
        }
    }
}

/// Bounds-checked reads from a mapped file.
struct ELFBytes {
    let base: UnsafeRawPointer
    let count: Int

    private func load<T: FixedWidthInteger>(_ offset: UInt64, as type: T.Type) -> T? {
        guard let start = Int(exactly: offset), start <= count - MemoryLayout<T>.size else { return nil }
        return T(littleEndian: base.loadUnaligned(fromByteOffset: start, as: T.self))
    }
    func contains(_ offset: UInt64, _ length: UInt64) -> Bool {
        offset <= UInt64(count) && length <= UInt64(count) - offset
    }
    func byte(_ offset: UInt64) -> UInt8? { load(offset, as: UInt8.self) }
    func word16(_ offset: UInt64) -> UInt16? { load(offset, as: UInt16.self) }
    func word32(_ offset: UInt64) -> UInt32? { load(offset, as: UInt32.self) }
    func word64(_ offset: UInt64) -> UInt64? { load(offset, as: UInt64.self) }

    func hasPrefix(_ prefix: [UInt8], at offset: UInt64) -> Bool {
        guard let start = Int(exactly: offset), start <= count - prefix.count else { return false }
        return UnsafeRawBufferPointer(start: base + start, count: prefix.count).elementsEqual(prefix)
    }

    func string(at offset: UInt64) -> String {
        var result: [UInt8] = []
        var at = offset
        while result.count < 128, let next = byte(at), next != 0 {
            result.append(next)
            at &+= 1
        }
        return String(decoding: result, as: UTF8.self)
    }

    /// A dynamic symbol.
    struct Symbol {
        /// Where in the file its name is.
        let name: UInt64
        /// Of what it stands for, in memory.
        let address: UInt64
        /// Whether the file has it, and does not only refer to it.
        let isDefined: Bool
    }

    /// Calls `body` for each dynamic symbol whose name begins with `baton_`. Most of a module's hundreds are Swift's own.
    /// - Returns: false for a file that is cut short or damaged.
    func forEachSymbolOfBaton(_ body: (Symbol) -> Void) -> Bool {
        guard let sections = word64(40), let entrySize = word16(58), let count = word16(60) else { return false }
        for index in 0..<UInt64(count) {
            let header = sections &+ index &* UInt64(entrySize)
            guard word32(header &+ 4) == 11 else { continue }  // SHT_DYNSYM
            guard let symbols = word64(header &+ 24), let size = word64(header &+ 32), let link = word32(header &+ 40),
                let strings = word64(sections &+ UInt64(link) &* UInt64(entrySize) &+ 24)
            else { return false }
            for number in 0..<min(size / 24, 1 << 20) {
                let at = symbols &+ number &* 24
                guard let name = word32(at), let section = word16(at &+ 6), let address = word64(at &+ 8) else {
                    return false
                }
                let text = strings &+ UInt64(name)
                // Eight bytes, of which the last two may be anything.
                guard let start = word64(text), start & 0xffff_ffff_ffff == ELFBytes.prefix else { continue }
                body(Symbol(name: text, address: address, isDefined: section != 0))
            }
        }
        return true
    }

    /// `baton_`, as a number of the file's byte order.
    private static let prefix: UInt64 = 0x5f6e_6f74_6162
}
