import BatonBase
import CBaton
import Glibc

/// Whether a module's file may be loaded: code that others can change is not
/// run.
enum ModuleTrust {
    /// Opens a module for loading.
    ///
    /// The file must be regular and, with every directory above it, be owned
    /// by root or the user and writable by no one else (sticky directories
    /// such as /tmp apart).
    /// - Parameter path: absolute and free of links, as `canonicalPath` gives.
    /// - Returns: the file, opened without following links.
    static func open(_ path: String) throws(VMMError) -> OwnedFD {
        // A pipe or device that stands there must not be waited for.
        let raw = cbaton_open_nofollow(path, O_RDONLY | O_NONBLOCK)
        guard raw >= 0 else { throw .system("module '\(path)' cannot be opened") }
        let fd = OwnedFD(adopting: raw)
        var status = stat()
        guard fstat(fd.raw, &status) == 0 else { throw .system("module '\(path)' cannot be examined") }
        guard status.st_mode & S_IFMT == S_IFREG else { throw VMMError("module '\(path)' is not a regular file") }
        try check(status, path, isDirectory: false)
        var directory = path
        while let slash = directory.utf8.lastIndex(of: UInt8(ascii: "/")) {
            directory = String(directory[..<slash])
            let name = directory.isEmpty ? "/" : directory
            guard stat(name, &status) == 0 else { throw .system("directory '\(name)' cannot be examined") }
            try check(status, name, isDirectory: true)
        }
        return fd
    }

    /// The absolute path behind `path`, without links.
    static func canonicalPath(_ path: String) throws(VMMError) -> String {
        guard let resolved = realpath(path, nil) else { throw .system("module '\(path)' cannot be opened") }
        defer { free(resolved) }
        return String(cString: resolved)
    }

    private static func check(_ status: stat, _ path: String, isDirectory: Bool) throws(VMMError) {
        let what = isDirectory ? "the directory '\(path)'" : "'\(path)'"
        guard cbaton_is_root_or_self(status.st_uid) != 0 else {
            throw VMMError(
                "\(what) belongs to user \(status.st_uid), so no module is loaded from there",
                hint: "Modules and the directories above them must belong to root or the user who runs Baton.")
        }
        // A sticky directory lets nobody replace what another user put there.
        if isDirectory && status.st_mode & S_ISVTX != 0 { return }
        if status.st_mode & S_IWOTH != 0 {
            throw VMMError(
                "\(what) is writable by everyone, so no module is loaded from there", hint: "chmod o-w \(path)")
        }
        // A group of the user's own, as most systems make it, is no one else.
        let isPrivateGroup = status.st_gid == 0 || (status.st_gid == getegid() && status.st_gid == geteuid())
        if status.st_mode & S_IWGRP != 0 && !isPrivateGroup {
            throw VMMError(
                "\(what) is writable by group \(status.st_gid), so no module is loaded from there",
                hint: "chmod g-w \(path)")
        }
    }
}
