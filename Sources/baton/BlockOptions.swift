import BatonRuntime
import Glibc

/// `-drive`, `-blockdev` and `blockdev-add`.
struct BlockOptions {
    private let vm: VirtualMachine
    private let loader: ModuleLoader
    /// File nodes that `driver=raw,file=NODE` may refer to.
    private var files: [String: FileNode] = [:]

    init(vm: VirtualMachine, loader: ModuleLoader) {
        self.vm = vm
        self.loader = loader
    }

    /// What `driver=file` says, of which `driver=raw` makes use.
    private struct FileNode {
        var path: String
        var locks: Bool
        var aio: String?
        var cache: BlockCache
    }

    // MARK: -drive

    /// What a `-drive` asks for beside its back end.
    enum Use {
        case none
        /// `if=virtio`: a device of its own.
        case virtio(driveID: String)
        /// `if=pflash`: the contents of a flash bank.
        case flash(unit: Int, driveID: String)
    }

    func drive(_ text: String, index: Int) throws(VMMError) -> Use {
        let options = try KeyValueOptions(text)
        let interface = try options.string("if") ?? "virtio"
        guard ["none", "virtio", "pflash"].contains(interface) else {
            throw VMMError("unsupported bus type '\(interface)'", hint: "Use if=none, if=virtio or if=pflash.")
        }
        let unit = try options.number("unit", in: 0...1)
        _ = try options.number("index")
        if try options.enumeration("media", ["disk", "cdrom"]) == "cdrom", !options.has("readonly") {
            options.set("readonly", "on")
        }
        // snapshot=on, and any other format, are a storage daemon's (ServedDrive).
        _ = try options.bool("snapshot")
        let id = try options.identifier("id") ?? "\(interface)\(index)"
        let path = try BlockOptions.requiredFile(options)
        let locks = try locking(options, "file.locking")
        let aio = try aio(options)
        let format = try options.string("format")
        var settings = BlockSettings()
        settings.cache = try cache(options, mode: true)
        if let policy = try options.enumeration("werror", BlockErrorPolicy.self) { settings.onWriteError = policy }
        if let policy = try options.enumeration("rerror", BlockErrorPolicy.self) {
            guard policy != .enospc else { throw VMMError("'enospc' is invalid for rerror") }
            settings.onReadError = policy
        }
        let file = FileNode(path: path, locks: locks, aio: aio, cache: settings.cache)
        let backend = try open(
            options, id: id, file: file, readOnlyKey: "readonly", format: format, settings: settings)
        try options.finish()
        try vm.add(backend)
        switch interface {
        case "virtio": return .virtio(driveID: id)
        case "pflash": return .flash(unit: Int(unit ?? UInt64(index & 1)), driveID: id)
        default: return .none
        }
    }

    // MARK: Nodes

    /// Makes what one `-blockdev` describes.
    mutating func add(_ options: KeyValueOptions) throws(VMMError) {
        let driver = try options.requiredString("driver")
        let name = try options.requiredIdentifier("node-name")
        guard vm.blockBackend(name) == nil else { throw VMMError("Duplicate nodes with node-name='\(name)'") }
        var file: FileNode
        let isFile = driver == "file" || driver == "host_device"
        switch driver {
        case "file", "host_device": file = try fileNode(options)
        case "raw":
            if let nested = options.under("file") {
                guard let kind = try nested.string("driver"), kind == "file" || kind == "host_device" else {
                    throw VMMError("Parameter 'file.driver' must be 'file' or 'host_device'")
                }
                file = try fileNode(nested)
                _ = try nested.string("node-name")
                _ = try nested.bool("read-only")
                _ = try nested.bool("auto-read-only")
                _ = try nested.enumeration("discard", ["unmap", "ignore", "on", "off"])
                try nested.finish()
            } else {
                let node = try options.requiredString("file")
                guard let known = files[node] else {
                    throw VMMError("Cannot find device='' nor node-name='\(node)'")
                }
                file = known
            }
            let own = try cache(options, mode: false)
            file.cache.isDirect = file.cache.isDirect || own.isDirect
            file.cache.ignoresFlush = file.cache.ignoresFlush || own.ignoresFlush
        default:
            throw VMMError("Unknown driver '\(driver)'", hint: "Drivers: file, host_device, raw.")
        }
        var settings = BlockSettings()
        settings.cache = file.cache
        // A node's driver says what the bytes are.
        let backend = try open(
            options, id: name, file: file, readOnlyKey: "read-only", format: "raw", settings: settings)
        try options.finish()
        try vm.add(backend)
        if isFile { files[name] = file }
    }

    /// Takes a node away (`blockdev-del`).
    mutating func remove(_ name: String) throws(VMMError) {
        try vm.removeBlockBackend(name)
        files[name] = nil
    }

    private func fileNode(_ options: KeyValueOptions) throws(VMMError) -> FileNode {
        FileNode(
            path: try options.requiredString("filename"), locks: try locking(options, "locking"),
            aio: try aio(options), cache: try cache(options, mode: false))
    }

    // MARK: Keys that they share

    /// What QEMU reaches by a protocol, and what is before it in the name of a file.
    private static let protocols = ["nbd", "nbd+unix", "http", "https", "ftp", "ftps", "ssh", "iscsi", "rbd", "nfs"]

    /// `file=` of a `-drive`: the path of an image or a block device.
    static func requiredFile(_ options: KeyValueOptions) throws(VMMError) -> String {
        guard let path = try options.string("file") else {
            throw VMMError(
                "Parameter 'file' is missing",
                hint: "A -drive has an image by file=PATH, and says by format= what it is. Nodes are for -blockdev.")
        }
        // A file may have such a name.
        if let name = protocols.first(where: { path.hasPrefix("\($0):") }), access(path, F_OK) != 0 {
            throw VMMError(
                "Could not open '\(path)': Unknown protocol '\(name)'",
                hint: "Attach it to the host (nbd-client, for one, makes a block device), and give its path.")
        }
        return path
    }

    /// - Parameter format: as the command line says; nil to look at the image.
    private func open(
        _ options: KeyValueOptions, id: String, file: FileNode, readOnlyKey: String, format: String?,
        settings given: BlockSettings
    ) throws(VMMError) -> BlockBackend {
        guard format == nil || format == "raw" else {
            throw VMMError(
                "Unknown driver '\(format ?? "")'",
                hint: "Only raw images are supported there: convert it with qemu-img.")
        }
        var settings = given
        let discard = try options.enumeration("discard", ["unmap", "ignore", "on", "off"]) ?? "unmap"
        settings.discards = discard == "unmap" || discard == "on"
        settings.detectZeroes = try options.enumeration("detect-zeroes", DetectZeroes.self) ?? .off
        if settings.detectZeroes == .unmap, !settings.discards {
            throw VMMError(
                "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap")
        }
        settings.formatIsKnown = format != nil
        settings.isLocked = file.locks
        if file.aio == "native", !file.cache.isDirect {
            throw VMMError(
                "aio=native was specified, but it requires cache.direct=on, which was not specified.")
        }
        let isReadOnly = try options.bool(readOnlyKey) ?? false
        _ = try options.bool("auto-read-only")
        settings.engine = engine(file.aio)
        return try BlockBackend(
            id: id, filename: file.path, readOnly: isReadOnly, settings: settings, handover: vm.handover)
    }

    /// `locking=`: `auto`, as there are locks on every Linux that this runs on, is `on`.
    private func locking(_ options: KeyValueOptions, _ key: String) throws(VMMError) -> Bool {
        try options.enumeration(key, ["on", "off", "auto"]) != "off"
    }

    private func aio(_ options: KeyValueOptions) throws(VMMError) -> String? {
        try options.enumeration("aio", ["threads", "native", "io_uring"])
    }

    /// `cache=`, and the parts of it by themselves.
    /// - Parameter mode: whether the names of combinations are taken.
    private func cache(_ options: KeyValueOptions, mode: Bool) throws(VMMError) -> BlockCache {
        var cache = BlockCache()
        if mode, let name = try options.string("cache") {
            guard let known = BlockCache.modes.first(where: { $0.name == (name == "off" ? "none" : name) }) else {
                throw VMMError("invalid cache option")
            }
            cache = known.cache
        }
        if let isDirect = try options.bool("cache.direct") { cache.isDirect = isDirect }
        if let ignoresFlush = try options.bool("cache.no-flush") { cache.ignoresFlush = ignoresFlush }
        if mode, let isWriteback = try options.bool("cache.writeback") { cache.isWriteback = isWriteback }
        return cache
    }

    // MARK: Engines

    /// What is used unless `aio=` says otherwise, where there is its module and the kernel lets it.
    private static let preferredEngine = "io_uring"

    /// The engine for `aio=`; nil for threads. `native` asks for requests that the kernel carries out, as that one's are.
    private func engine(_ aio: String?) -> BlockEngine? {
        // What a ring does no filter sees: in a sandbox only for who asks for it.
        guard aio != "threads", aio != nil || !HostAccess.isInSandbox else { return nil }
        do throws(VMMError) {
            return try vm.blockEngines.engine(of: try loader.blockEngineType(BlockOptions.preferredEngine))
        } catch {
            if let aio { Report.warning("aio=\(aio): \(error.message); threads are used in its place") }
            return nil
        }
    }
}
