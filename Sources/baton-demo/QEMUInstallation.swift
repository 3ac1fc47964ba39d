import Foundation
import ProcessSupport

/// A QEMU that knows cpr-exec (10.2 and later), to measure beside: the installed one, or one from a later Debian in the
/// cache.
struct QEMUInstallation {
    /// Which machines it has.
    enum Target {
        case riscv64, x86_64

        var program: String { "qemu-system-\(self)" }
        fileprivate var package: String { self == .riscv64 ? "qemu-system-riscv" : "qemu-system-x86" }
        /// In the cache.
        fileprivate var directory: String { self == .riscv64 ? "qemu" : "qemu-x86" }
    }

    /// What to execute, before the options.
    let command: [String]
    /// As in `11.1.2`.
    let version: String

    /// - Throws: why none is to be had.
    static func find(
        _ target: Target = .riscv64, cache: String, progress: (String) -> Void
    ) throws -> QEMUInstallation {
        if let path = Tool.find(target.program), let installed = try? QEMUInstallation(command: [path]) {
            return installed
        }
        let later = try later(target, cache: cache)
        func cached() throws -> QEMUInstallation {
            guard let command = later.command else {
                throw Failure("\(later.root) holds no \(target.program) and C library")
            }
            return try QEMUInstallation(command: command + ["-L", "\(later.root)/usr/share/qemu"])
        }
        if let found = try? cached() { return found }
        var reasons: [String] = []
        for suite in LaterDebian.suites {
            do {
                progress("downloading \(target.program) of Debian \(suite), to measure beside")
                try later.download(suite: suite)
                return try cached()
            } catch {
                reasons.append("\(suite): \(error)")
            }
        }
        throw Failure(reasons.joined(separator: "\n"))
    }

    /// The one of a later Debian, which may not be in the cache yet.
    static func later(_ target: Target, cache: String) throws -> LaterDebian {
        try LaterDebian(
            cache: cache, name: target.directory, package: target.package, program: "usr/bin/\(target.program)")
    }

    private init(command: [String]) throws {
        let text = try Tool.require(command + ["-version"]).text
        guard let word = text.split(separator: " ").first(where: { $0.first?.isNumber == true }) else {
            throw Failure("\(command[0]) does not say its version")
        }
        let numbers = word.split(separator: ".").compactMap { Int($0) }
        guard numbers.count >= 2, (numbers[0], numbers[1]) >= (10, 2) else {
            throw Failure("QEMU \(word) has no cpr-exec")
        }
        self.command = command
        version = String(word)
    }
}
