import BatonRuntime
import Glibc

/// `-drive` for a disk that a storage daemon serves: in another format than raw, or with a temporary overlay.
enum ServedDrive {
    /// Whether an option asks for such a disk.
    /// - Parameter snapshot: `-snapshot` was given.
    static func isWanted(_ text: String, snapshot: Bool) throws(VMMError) -> Bool {
        let options = try KeyValueOptions(text)
        let isTemporary = try isTemporary(options, snapshot: snapshot)
        guard try options.string("if") != "pflash" else {
            guard !isTemporary else {
                throw VMMError(
                    "snapshot=on is not supported for if=pflash", hint: "Use a copy of the image, or readonly=on.")
            }
            return false
        }
        if isTemporary { return true }
        if let format = try options.string("format") { return format != "raw" }
        return try options.string("file").flatMap { ImageFormat.probe($0) } != nil
    }

    private static func isReadOnly(_ options: KeyValueOptions) throws(VMMError) -> Bool {
        let isCD = try options.string("media") == "cdrom"
        return try options.bool("readonly") ?? isCD
    }

    /// Whether what is written is to go with the VM.
    private static func isTemporary(_ options: KeyValueOptions, snapshot: Bool) throws(VMMError) -> Bool {
        guard try options.bool("snapshot") ?? snapshot else { return false }
        return try !isReadOnly(options)
    }

    /// Carries the option out.
    /// - Returns: what it asks for besides.
    static func make(_ text: String, index: Int, snapshot: Bool, vm: VirtualMachine) throws(VMMError)
        -> BlockOptions.Use
    {
        let options = try KeyValueOptions(text)
        let interface = try options.enumeration("if", ["none", "virtio"]) ?? "virtio"
        _ = try options.number("index")
        _ = try options.enumeration("media", ["disk", "cdrom"])
        let id = try options.identifier("id") ?? "\(interface)\(index)"
        let file = absolute(try BlockOptions.requiredFile(options))
        let given = try options.string("format")
        let format = given ?? ImageFormat.probe(file) ?? "raw"
        let isTemporary = try isTemporary(options, snapshot: snapshot)
        let readOnly = try isReadOnly(options)
        try refuseErrorActions(options)
        let settings = try Settings(options)
        try options.finish()

        let base = settings.node(
            driver: format, file: file, name: isTemporary ? nil : StorageDaemon.root, readOnly: readOnly || isTemporary)
        var disk = StorageDaemon.Disk(
            id: id, filename: file, format: format, readOnly: readOnly,
            nodes: { directory in
                guard isTemporary else { return [base.text()] }
                // It does not outlive the host, so it need not be on its disk.
                var settings = settings
                settings.isUnsafe = true
                var overlay = settings.node(
                    driver: "qcow2", file: StorageDaemon.overlay(directory), name: StorageDaemon.root,
                    readOnly: readOnly)
                if case .object(var members) = overlay {
                    members["backing"] = base
                    overlay = .object(members)
                }
                return [overlay.text()]
            },
            root: StorageDaemon.root,
            // A temporary overlay is in the daemon's directory.
            written: isTemporary ? [] : ImageFormat.isWrittenAlone(file, format) ? [file] : nil)
        if isTemporary {
            disk.prepare = { directory throws(VMMError) in
                try StorageDaemon.makeOverlay(of: file, format: format, in: directory)
            }
            try vm.cpr?.addBlocker(
                VMMError("drive '\(id)' is temporary (snapshot=on): what was written to it ends with the VM"),
                scope: .outlivingProcess)
        }
        do throws(VMMError) {
            try StorageDaemon.serve(disk, vm: vm)
        } catch {
            guard given == nil, error.hint == nil, format != "raw" else { throw error }
            throw VMMError(
                error.message,
                hint: "'\(file)' looks like an image of the format \(format), as no format= says otherwise.")
        }
        return interface == "virtio" ? .virtio(driveID: id) : .none
    }

    /// QEMU's actions on errors are carried out by a device of the VMM; the daemon reports each to the guest.
    private static func refuseErrorActions(_ options: KeyValueOptions) throws(VMMError) {
        for key in ["werror", "rerror"] {
            guard let action = try options.string(key), action != "report" else { continue }
            throw VMMError(
                "\(key)=\(action) is not supported for a disk that a storage daemon serves",
                hint: "Use \(key)=report, which tells the guest, or convert the image with 'qemu-img convert -O raw'.")
        }
    }

    private static func absolute(_ path: String) -> String {
        guard !path.hasPrefix("/"), let directory = getcwd(nil, 0) else { return path }
        defer { free(directory) }
        return "\(String(cString: directory))/\(path)"
    }

    /// How the daemon is to use an image.
    private struct Settings {
        var isDirect = false
        var isUnsafe = false
        var aio: String?
        var discards = true
        var detectZeroes: String?
        var locking: String?

        init(_ options: KeyValueOptions) throws(VMMError) {
            switch try options.enumeration("cache", ["none", "writeback", "writethrough", "directsync", "unsafe"]) {
            case "none": isDirect = true
            case "unsafe": isUnsafe = true
            case let mode? where mode != "writeback":
                throw VMMError(
                    "cache=\(mode) is not supported for a disk that a storage daemon serves",
                    hint: "Use cache=none or cache=writeback: the guest says itself when its data must be durable.")
            default: break
            }
            aio = try options.enumeration("aio", ["threads", "native", "io_uring"])
            let discard = try options.enumeration("discard", ["unmap", "ignore", "on", "off"]) ?? "unmap"
            discards = discard == "unmap" || discard == "on"
            detectZeroes = try options.enumeration("detect-zeroes", ["off", "on", "unmap"])
            locking = try options.enumeration("file.locking", ["on", "off", "auto"])
        }

        /// An argument of the daemon's `--blockdev`, with the file's node in it.
        func node(driver: String, file path: String, name: String?, readOnly: Bool) -> JSON {
            let cache: JSON = ["direct": .bool(isDirect), "no-flush": .bool(isUnsafe)]
            var file: JSONObject = [
                "driver": isBlockDevice(path) ? "host_device" : "file", "filename": .string(path), "cache": cache,
                "read-only": .bool(readOnly), "discard": discards ? "unmap" : "ignore",
            ]
            if let aio { file["aio"] = .string(aio) }
            if let locking { file["locking"] = .string(locking) }
            var node: JSONObject = [
                "driver": .string(driver), "cache": cache, "read-only": .bool(readOnly),
                "discard": discards ? "unmap" : "ignore", "file": .object(file),
            ]
            if let detectZeroes { node["detect-zeroes"] = .string(detectZeroes) }
            if let name { node["node-name"] = .string(name) }
            return .object(node)
        }

        private func isBlockDevice(_ path: String) -> Bool {
            var status = stat()
            return stat(path, &status) == 0 && status.st_mode & S_IFMT == S_IFBLK
        }
    }
}
