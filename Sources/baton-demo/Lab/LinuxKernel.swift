import Foundation
import ProcessSupport

/// A kernel in the cache: one of Debian's, as its packages have it, or one of our own without modules.
struct LinuxKernel {
    /// Of `vmlinuz` and `modules`.
    let directory: String
    var hasModules = true

    /// The compressed kernel, as boot loaders take it.
    var image: String { "\(directory)/vmlinuz" }
    private var modules: String { "\(directory)/modules" }
    var isComplete: Bool {
        (hasModules ? [image, modules] : [image]).allSatisfy { FileManager.default.fileExists(atPath: $0) }
    }

    /// Unpacks the packages of one kernel.
    /// - Parameter scratch: a directory of the caller's, which is left with what is not needed.
    func unpack(_ packages: [String], scratch: String) throws {
        let files = FileManager.default
        for package in packages { try Tool.require(["dpkg-deb", "-x", package, scratch]) }
        // Debian has moved both more than once.
        let homes = ["\(scratch)/usr/lib/modules", "\(scratch)/lib/modules"]
        for home in homes {
            guard let release = try? files.contentsOfDirectory(atPath: home).first else { continue }
            let images = ["\(home)/\(release)/vmlinuz", "\(scratch)/boot/vmlinuz-\(release)"]
            guard let image = images.first(where: { files.fileExists(atPath: $0) }) else { break }
            try files.createDirectory(atPath: directory, withIntermediateDirectories: true)
            try files.moveItem(atPath: image, toPath: self.image)
            try files.moveItem(atPath: "\(home)/\(release)", toPath: modules)
            return
        }
        throw Failure("the packages \(packages.map { ($0 as NSString).lastPathComponent }) hold no kernel")
    }

    /// Modules and those that they depend on, decompressed, in the order to load them in. What is built into the
    /// kernel is left out.
    /// - Parameter names: as in `virtio_blk`.
    func modules(_ names: [String], busybox: String) throws -> [Data] {
        guard hasModules else { return [] }
        var paths: [String: String] = [:]
        let all = FileManager.default.enumerator(atPath: modules)
        while let path = all?.nextObject() as? String {
            let parts = (path as NSString).lastPathComponent.components(separatedBy: ".ko")
            if parts.count == 2 { paths[Self.canonical(parts[0])] = path }
        }
        let list = (try? String(contentsOfFile: "\(modules)/modules.builtin", encoding: .utf8)) ?? ""
        let builtIn = Set(list.split(separator: "\n").map { Self.canonical(Self.stem(String($0))) })

        var loaded: Set<String> = [], contents: [Data] = []
        func load(_ name: String) throws {
            guard !builtIn.contains(name), loaded.insert(name).inserted else { return }
            guard let path = paths[name] else { throw Failure("\(directory) has no module \(name)") }
            let module = try decompress("\(modules)/\(path)", busybox: busybox)
            for dependency in Self.dependencies(of: module) { try load(dependency) }
            contents.append(module)
        }
        for name in names { try load(Self.canonical(name)) }
        return contents
    }

    private func decompress(_ path: String, busybox: String) throws -> Data {
        guard path.hasSuffix(".xz") else { return try Data(contentsOf: URL(fileURLWithPath: path)) }
        return try Tool.require([busybox, "xz", "-dc", path]).output
    }

    /// A module says in its section `.modinfo`, in strings that end with a NUL, which others it needs.
    private static func dependencies(of module: Data) -> [String] {
        guard let key = module.range(of: Data("\0depends=".utf8)),
            let end = module[key.upperBound...].firstIndex(of: 0)
        else { return [] }
        return String(decoding: module[key.upperBound..<end], as: UTF8.self).split(separator: ",")
            .map { canonical(String($0)) }
    }

    private static func stem(_ path: String) -> String {
        (path as NSString).lastPathComponent.components(separatedBy: ".ko")[0]
    }

    /// Names of modules are the same with `-` and with `_`.
    private static func canonical(_ name: String) -> String { name.replacingOccurrences(of: "-", with: "_") }
}
