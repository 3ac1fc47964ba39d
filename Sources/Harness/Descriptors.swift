import Foundation
import HarnessSystem
import ProcessSupport

/// Descriptors of a VMM, held on to from outside, to see whether the VMM has
/// the same open files later.
final class Descriptors {
    struct Held {
        var number: Int32
        var link: String
        /// A duplicate of ours; -1 where the kernel lets nobody have one.
        var copy: Int32
    }
    private(set) var held: [Held] = []

    /// What each descriptor of a process is, as /proc shows it.
    static func links(of pid: pid_t) throws -> [Int32: String] {
        let directory = "/proc/\(pid)/fd"
        var result: [Int32: String] = [:]
        for name in try FileManager.default.contentsOfDirectory(atPath: directory) {
            guard let number = Int32(name),
                let link = try? FileManager.default.destinationOfSymbolicLink(atPath: "\(directory)/\(name)")
            else { continue }
            result[number] = link
        }
        return result
    }

    /// Takes hold of those whose link is wanted.
    init(of pid: pid_t, where wanted: (String) -> Bool) throws {
        for (number, link) in try Self.links(of: pid).sorted(by: { $0.key < $1.key }) where wanted(link) {
            held.append(Held(number: number, link: link, copy: harness_borrow_fd(pid, number)))
        }
    }

    /// Takes hold of those numbers.
    convenience init(of pid: pid_t, numbers: [Int32]) throws {
        let links = try Self.links(of: pid)
        try self.init(of: pid, where: { _ in false })
        for number in numbers {
            guard let link = links[number] else { throw Failure("fd \(number) is not open in process \(pid)") }
            held.append(Held(number: number, link: link, copy: harness_borrow_fd(pid, number)))
        }
    }

    deinit { for one in held where one.copy >= 0 { close(one.copy) } }

    /// Whether a process has the same open file description as `one`.
    private static func has(_ pid: pid_t, _ one: Held, in links: [Int32: String]) throws -> Bool {
        for (number, link) in links where link == one.link {
            // Without a copy to compare, the name is all there is: a socket's is its own.
            guard one.copy >= 0 else { return true }
            let same = harness_same_file(one.copy, pid, number)
            if same == 1 { return true }
            if same < 0 && (errno == EPERM || errno == ENOSYS) { return true }
        }
        return false
    }

    /// - Throws: which open files the process has no more.
    func expectKept(by pid: pid_t) throws {
        let links = try Self.links(of: pid)
        let lost = try held.filter { try !Self.has(pid, $0, in: links) }
        try require(
            lost.isEmpty,
            "no longer the same open file: \(lost.map { "fd \($0.number) (\($0.link))" }.joined(separator: ", "))")
    }
}
