import BatonRuntime
import Glibc

/// The cgroups of a thread that is not where its process is: in a threaded cgroup (Linux' cgroup-v2.rst, "Threads"),
/// or in any of version 1.
enum ThreadGroup {
    /// The longest list that is taken from a state.
    static let most = 32

    /// Those of a thread in which the main thread is not, each as a line of `/proc/PID/cgroup` without its number:
    /// `CONTROLLERS:PATH`, without controllers for version 2.
    static func groups(ofThread thread: Int32) -> [String] {
        let main = lines("/proc/self/cgroup")
        let own = lines("/proc/self/task/\(thread)/cgroup")
        guard own != main else { return [] }
        return own.filter { !main.contains($0) }.compactMap { line in
            line.firstIndex(of: ":").map { String(line[line.index(after: $0)...]) }
        }
    }

    /// Whether it is such a line, whose path stays below where cgroups are mounted.
    static func isValid(_ group: String) -> Bool {
        guard let (controllers, path) = parts(group), group.utf8.count < Int(PATH_MAX) else { return false }
        return path.first == "/" && !path.split(separator: "/").contains("..") && !controllers.contains("/")
            && !group.utf8.contains { $0 < 32 }
    }

    /// Moves a thread of this process.
    /// - Returns: why not.
    static func move(thread: Int32, to group: String) -> VMMError? {
        guard let (controllers, path) = parts(group), let directory = directory(of: controllers) else {
            return VMMError("it is not mounted")
        }
        let file = directory + path + (controllers.isEmpty ? "/cgroup.threads" : "/tasks")
        do throws(VMMError) {
            let target = try FD.open(file, O_WRONLY | O_NOFOLLOW)
            try FD.writeAll(target.raw, Array(String(thread).utf8), to: "'\(file)'")
            return nil
        } catch {
            return error
        }
    }

    private static func parts(_ group: String) -> (controllers: Substring, path: Substring)? {
        guard let colon = group.firstIndex(of: ":") else { return nil }
        return (group[..<colon], group[group.index(after: colon)...])
    }

    /// Where a hierarchy is mounted, with its root.
    private static func directory(of controllers: Substring) -> String? {
        for line in lines("/proc/self/mountinfo") {
            // ID, parent, device, root, mount point, options, optional fields, "-", type, source, options.
            let fields = line.split(separator: " ")
            guard let dash = fields.firstIndex(of: "-"), dash + 3 < fields.count, fields[3] == "/" else { continue }
            let (type, options) = (fields[dash + 1], fields[dash + 3])
            let isIt =
                controllers.isEmpty
                ? type == "cgroup2"
                : type == "cgroup"
                    && controllers.split(separator: ",").allSatisfy(options.split(separator: ",").contains)
            if isIt { return String(fields[4]) }
        }
        return nil
    }

    private static func lines(_ path: String) -> [Substring] {
        let fd = open(path, O_RDONLY | O_CLOEXEC)
        guard fd >= 0 else { return [] }
        defer { close(fd) }
        var bytes: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: 8192)
        while bytes.count < 1 << 20 {
            let count = read(fd, &chunk, chunk.count)
            guard count > 0 else { break }
            bytes += chunk.prefix(count)
        }
        return String(decoding: bytes, as: UTF8.self).split(separator: "\n")
    }
}
