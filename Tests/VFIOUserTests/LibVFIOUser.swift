import Foundation
import TestSupport
import Testing

/// libvfio-user and its sample servers: found or fetched, and built, when the
/// tests run. Nothing of theirs is part of this repository.
///
/// The source comes from `BATON_LIBVFIO_USER` (a checkout), or is cloned once
/// into `.build/libvfio-user` from GitHub, or from where git's `url.*.insteadOf` says.
/// It needs json-c's header and library.
enum LibVFIOUser {
    private static func repository(_ commit: String) -> SourceRepository {
        SourceRepository(
            name: "libvfio-user", commit: commit,
            places: ["https://github.com/nutanix/libvfio-user"])
    }
    private static let current = repository("efd091bce1c1c2da64a1a935911a7c2300c848b2")
    /// Its own sample `server` does not start with the library since that
    /// checks the sizes of BARs: before that.
    private static let older = repository("7e7a0a6c4f210adfad07589452fd43d8a8478993")

    /// The programs, or why there are none.
    static let programs: Result<Programs, any Error> = Result {
        let cache = try Products.cache("libvfio-user")
        if let given = ProcessInfo.processInfo.environment["BATON_LIBVFIO_USER"] {
            return try Programs(given, older: nil, in: cache)
        }
        return try Programs(
            current.checkout(in: cache, as: "source"), older: older.checkout(in: cache, as: "older"), in: cache)
    }

    static var isAvailable: Bool { (try? programs.get()) != nil }
    /// Why there are none, for the list of skipped tests.
    static var absence: Comment {
        guard case .failure(let reason) = programs else { return "" }
        let lines = "\(reason)".split(separator: "\n").prefix(4).joined(separator: " ")
        return Comment(rawValue: "needs libvfio-user's sources (BATON_LIBVFIO_USER) and libjson-c-dev: \(lines)")
    }

    struct Programs {
        /// The tests' device on the library.
        let device: String
        let gpio: String
        /// nil where there is no source of which it starts.
        let server: String?

        init(_ source: String, older: String?, in directory: String) throws {
            let tests = "\(Products.repository)/Tests"
            func build(_ name: String, _ sources: [String], in source: String) throws -> String {
                let library = try FileManager.default.contentsOfDirectory(atPath: "\(source)/lib")
                    .filter { $0.hasSuffix(".c") && $0 != "tran_pipe.c" }.sorted().map { "\(source)/lib/\($0)" }
                let target = "\(directory)/\(name)"
                try ChildProcess.run(
                    [
                        "cc", "-O1", "-g", "-w", "-D_GNU_SOURCE", "-I/usr/include/json-c", "-I\(source)/include",
                        "-I\(source)/lib", "-I\(source)/samples", "-I\(tests)/VFIOUserServer",
                    ] + library + sources + ["-o", target, "-ljson-c"])
                return target
            }
            device = try build(
                "device", ["\(tests)/VFIOUserTests/Library/server.c", "\(tests)/VFIOUserServer/device.c"], in: source)
            gpio = try build("gpio-pci-idio-16", ["\(source)/samples/gpio-pci-idio-16.c"], in: source)
            server = try older.map { older throws in try build("server", ["\(older)/samples/server.c"], in: older) }
        }
    }
}
