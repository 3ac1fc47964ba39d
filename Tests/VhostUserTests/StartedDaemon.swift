import Foundation
import TestSupport
import Testing

/// What `baton` has started for a disk: found by the image in its arguments.
enum StartedDaemon {
    /// PIDs of the programs that have a text in their command line; not those that have ended and nobody has waited for.
    static func pids(_ program: String, with text: String) throws -> [pid_t] {
        try FileManager.default.contentsOfDirectory(atPath: "/proc").compactMap { pid_t($0) }.filter { pid in
            guard let bytes = FileManager.default.contents(atPath: "/proc/\(pid)/cmdline") else { return false }
            let words = bytes.split(separator: 0).map { String(decoding: $0, as: UTF8.self) }
            return words.first == program && words.contains { $0.contains(text) }
        }
    }

    static func storage(_ image: String) throws -> [pid_t] { try pids("qemu-storage-daemon", with: image) }

    /// The one that serves an image.
    static func one(_ image: String) throws -> pid_t {
        let all = try storage(image)
        guard all.count == 1 else { throw TestError("\(all.count) daemons serve \(image)") }
        return all[0]
    }

    /// The directory that the VMM has made for the daemon: of its PID file.
    static func directory(_ pid: pid_t) throws -> String {
        let words = try #require(FileManager.default.contents(atPath: "/proc/\(pid)/cmdline")).split(separator: 0)
            .map { String(decoding: $0, as: UTF8.self) }
        guard let place = words.firstIndex(of: "--pidfile"), place + 1 < words.count else {
            throw TestError("no --pidfile in \(words)")
        }
        return URL(fileURLWithPath: words[place + 1]).deletingLastPathComponent().path
    }

    /// Waits until the program and its directory have gone.
    static func awaitEnd(of pid: pid_t, _ directory: String) throws {
        try eventually("the daemon \(pid) ends") {
            kill(pid, 0) != 0
                || (try? String(contentsOfFile: "/proc/\(pid)/stat", encoding: .utf8))?.contains(") Z ") == true
        }
        try eventually("\(directory) goes") { !FileManager.default.fileExists(atPath: directory) }
    }
}
