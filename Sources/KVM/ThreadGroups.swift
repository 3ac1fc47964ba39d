import BatonRuntime
import CKVM
import Glibc

/// The control groups of a thread, as `/proc/self/task/ID/cgroup` lists them: a line each of hierarchy, controllers and
/// path. In versions 1 and 2 of cgroups (in threaded groups) a thread may be elsewhere than its process.
enum ThreadGroups {
    private static let longest = 4096

    /// - Returns: the text; empty when it cannot be read.
    static func text(_ thread: Int32) -> String {
        withUnsafeTemporaryAllocation(of: CChar.self, capacity: longest) { buffer in
            guard let base = buffer.baseAddress,
                ckvm_read_text("/proc/self/task/\(thread)/cgroup", base, longest) == 0
            else { return "" }
            return String(cString: base)
        }
    }

    /// Moves a thread into the groups of `text` in which it is not.
    /// - Throws: which cannot be joined.
    static func move(_ thread: Int32, to text: String) throws(VMMError) {
        let current = self.text(thread).split(separator: "\n")
        for line in text.split(separator: "\n") where !current.contains(line) {
            let parts = line.split(separator: ":", maxSplits: 2, omittingEmptySubsequences: false)
            guard isGroup(line) else { continue }
            var code: Int32 = ENOENT
            for file in files(controllers: parts[1], path: parts[2]) where code != 0 {
                code = ckvm_write_text(file, "\(thread)")
                HostAccess.noteRefusal(file, code)
            }
            guard code == 0 else { throw .system("Could not move a CPU's thread to the cgroup '\(line)'", errno: code) }
        }
    }

    /// Whether all lines of a text from elsewhere name groups, and nothing outside of the file systems of groups.
    static func areGroups(_ text: String) -> Bool { text.split(separator: "\n").allSatisfy(isGroup) }

    private static func isGroup(_ line: Substring) -> Bool {
        let parts = line.split(separator: ":", maxSplits: 2, omittingEmptySubsequences: false)
        return parts.count == 3 && !parts[1].contains("/") && parts[1] != "." && parts[1] != ".."
            && parts[2].hasPrefix("/") && !parts[2].split(separator: "/").contains("..")
    }

    /// Where a thread's id is to be written to, by the places at which distributions mount cgroups.
    private static func files(controllers: Substring, path: Substring) -> [String] {
        let root = "/sys/fs/cgroup"
        if controllers.isEmpty { return ["\(root)\(path)/cgroup.threads", "\(root)/unified\(path)/cgroup.threads"] }
        let name = controllers.hasPrefix("name=") ? controllers.dropFirst(5) : controllers
        return ["\(root)/\(name)\(path)/tasks"]
    }
}
