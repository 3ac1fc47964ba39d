import Foundation
import TestSupport

/// libvfio-user and its sample servers: found or fetched, and built, when the
/// tests run. Nothing of theirs is part of this repository.
///
/// The source comes from `BATON_LIBVFIO_USER` (a checkout), or is cloned once
/// into `.build/libvfio-user`: from a mirror on this machine if there is one,
/// else from GitHub. It needs json-c's header and library.
enum LibVFIOUser {
    private static let repository = SourceRepository(
        name: "libvfio-user", commit: "efd091bce1c1c2da64a1a935911a7c2300c848b2",
        places: ["/work/.mirror/nutanix+libvfio-user/repo", "https://github.com/nutanix/libvfio-user"])

    /// The programs, or why there are none.
    static let programs: Result<Programs, any Error> = Result {
        let source =
            try ProcessInfo.processInfo.environment["BATON_LIBVFIO_USER"]
            ?? repository.checkout(in: try Products.cache("libvfio-user"), as: "source")
        return try Programs(source)
    }

    static var isAvailable: Bool { (try? programs.get()) != nil }

    struct Programs {
        /// The tests' device on the library.
        let device: String
        let gpio: String
        let server: String

        init(_ source: String) throws {
            let directory = try Products.cache("libvfio-user")
            let library = try FileManager.default.contentsOfDirectory(atPath: "\(source)/lib")
                .filter { $0.hasSuffix(".c") && $0 != "tran_pipe.c" }.sorted().map { "\(source)/lib/\($0)" }
            let tests = "\(Products.repository)/Tests"
            func build(_ name: String, _ sources: [String]) throws -> String {
                let target = "\(directory)/\(name)"
                try ChildProcess.run(
                    [
                        "cc", "-O1", "-g", "-w", "-D_GNU_SOURCE", "-I/usr/include/json-c", "-I\(source)/include",
                        "-I\(source)/lib", "-I\(source)/samples", "-I\(tests)/VFIOUserServer",
                    ] + library + sources + ["-o", target, "-ljson-c"])
                return target
            }
            device = try build(
                "device", ["\(tests)/VFIOUserTests/Library/server.c", "\(tests)/VFIOUserServer/device.c"])
            gpio = try build("gpio-pci-idio-16", ["\(source)/samples/gpio-pci-idio-16.c"])
            server = try build("server", ["\(source)/samples/server.c"])
        }
    }
}
