import BatonRuntime
import Glibc

/// A device's own file, `/dev/vfio/devices/vfioN`, found in sysfs.
enum VFIOCharacterDevice {
    private struct Number {
        let major: UInt32
        let minor: UInt32

        /// As in `st_rdev`: makedev(3).
        var device: dev_t {
            dev_t(major & 0xffff_f000) << 32 | dev_t(major & 0xfff) << 8 | dev_t(minor & 0xffff_ff00) << 12
                | dev_t(minor & 0xff)
        }
    }

    /// - Parameter sysfsPath: the device's directory.
    static func open(_ sysfsPath: String) throws(VMMError) -> OwnedFD {
        let directory = "\(sysfsPath)/vfio-dev"
        let name = try name(in: directory)
        let number = try number("\(directory)/\(name)/dev")
        let path = "/dev/vfio/devices/\(name)"
        // Where devices have other names, /dev/char has them by number.
        for candidate in [path, "/dev/char/\(number.major):\(number.minor)"] {
            let fd = HostAccess.open(candidate, O_RDWR)
            guard fd >= 0 else {
                if errno == ENOENT { continue }
                break
            }
            let file = OwnedFD(adopting: fd)
            var status = stat()
            if fstat(file.raw, &status) == 0, status.st_mode & S_IFMT == S_IFCHR, status.st_rdev == number.device {
                return file
            }
        }
        throw .system("Failed to open \(path)", hint: "The file must be accessible, and nobody else may have it open.")
    }

    private static func name(in directory: String) throws(VMMError) -> String {
        guard let handle = opendir(directory) else {
            throw .system(
                "couldn't open directory \(directory)",
                hint: "The device must be bound to vfio-pci, and the kernel have VFIO_DEVICE_CDEV.")
        }
        defer { closedir(handle) }
        while let entry = readdir(handle) {
            let name = withUnsafeBytes(of: &entry.pointee.d_name) { bytes in
                String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
            }
            if name.hasPrefix("vfio") { return name }
        }
        throw VMMError("failed to find \(directory)/vfioX/dev")
    }

    /// Reads `MAJOR:MINOR`.
    private static func number(_ path: String) throws(VMMError) -> Number {
        let fd = retryingInterrupts { Glibc.open(path, O_RDONLY | O_CLOEXEC) }
        guard fd >= 0 else { throw .system("failed to load \"\(path)\"") }
        let file = OwnedFD(adopting: fd)
        var buffer = [UInt8](repeating: 0, count: 64)
        let count = retryingInterrupts { read(file.raw, &buffer, buffer.count) }
        guard count >= 0 else { throw .system("failed to load \"\(path)\"") }
        let text = String(decoding: buffer[..<count].prefix { $0 != UInt8(ascii: "\n") }, as: UTF8.self)
        let parts = text.split(separator: ":" as Character, omittingEmptySubsequences: false)
        guard parts.count == 2, let major = UInt32(parts[0]), let minor = UInt32(parts[1]) else {
            throw VMMError("failed to get major:minor for \"\(path)\"")
        }
        return Number(major: major, minor: minor)
    }
}
