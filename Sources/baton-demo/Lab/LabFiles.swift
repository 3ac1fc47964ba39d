import Foundation
import ProcessSupport

/// What the lab is made of, in the cache: QEMU's x86 emulator, Debian's kernel for the lab and that for its guest,
/// busybox and systemd, all of a later Debian than this machine's. Nothing is installed.
struct LabFiles {
    /// The emulator, before its options.
    let emulator: [String]
    /// Linux of the lab itself: Debian's for all machines, as that for clouds has neither KVM nor 9p.
    let host: LinuxKernel
    /// Linux of the guests: Debian's for clouds.
    let guest: LinuxKernel
    /// Linux of the lab where Debian's lacks something, such as iommufd. It takes minutes to build, so it may not be
    /// there (`LabKernelBuild`).
    let own: LinuxKernel
    let busybox: String
    /// With the libraries that it needs. It may not be there: the case that is about it gets it.
    let systemd: LaterDebian
    /// SeaBIOS for microvm.
    let firmware: String

    /// - Throws: why something is not to be had.
    static func obtain(cache: String, progress: (String) -> Void) throws -> LabFiles {
        #if arch(x86_64)
        // The one that is measured beside has the devices that the lab needs.
        let qemu = try QEMUInstallation.later(.x86_64, cache: cache)
        if qemu.command == nil { progress("downloading QEMU's x86 emulator, for the lab") }
        let command = try qemu.obtain()
        let directory = "\(qemu.cache)/lab", linux = "\(directory)/linux"
        let files = LabFiles(
            emulator: command + ["-L", "\(qemu.root)/usr/share/qemu", "-L", "\(qemu.root)/usr/share/seabios"],
            host: LinuxKernel(directory: "\(linux)/amd64"), guest: LinuxKernel(directory: "\(linux)/cloud-amd64"),
            own: LinuxKernel(directory: "\(directory)/own-linux", hasModules: false),
            busybox: "\(linux)/busybox",
            systemd: try LaterDebian(
                cache: directory, name: "systemd", package: "systemd", program: "usr/lib/systemd/systemd"),
            firmware: "\(qemu.root)/usr/share/seabios/bios-microvm.bin")
        if !files.areThere {
            progress("downloading Debian's amd64 kernels, for the lab and its guests")
            try download(to: linux, cache: directory)
        }
        guard files.areThere else { throw Failure("\(directory) is not complete after the download") }
        return files
        #else
        throw Failure("the lab emulates an x86-64 machine, for x86-64 programs")
        #endif
    }

    private var areThere: Bool {
        host.isComplete && guest.isComplete
            && [busybox, firmware].allSatisfy { FileManager.default.fileExists(atPath: $0) }
    }

    private static func download(to place: String, cache: String) throws {
        var reasons: [String] = []
        for suite in LaterDebian.suites {
            do { return try download(suite: suite, to: place, cache: cache) } catch {
                reasons.append("\(suite): \(error)")
            }
        }
        throw Failure(reasons.joined(separator: "\n"))
    }

    private static func download(suite: String, to place: String, cache: String) throws {
        let files = FileManager.default
        let scratch = "\(place).\(getpid()).new", aptDirectory = "\(cache)/apt/linux-\(suite)"
        try files.createDirectory(atPath: "\(scratch)/done", withIntermediateDirectories: true)
        defer { for path in [scratch, aptDirectory] { try? files.removeItem(atPath: path) } }
        let apt = try LaterDebian.archive(suite: suite, directory: aptDirectory)
        for flavour in ["amd64", "cloud-amd64"] {
            // The package of that name depends on the one of the newest version, and on what that is split into.
            let packages = try apt.dependencies(of: "linux-image-\(flavour)").filter {
                $0.range(of: "^linux-(image|base|binary|modules)-[0-9]", options: .regularExpression) != nil
            }
            let parts = "\(scratch)/\(flavour)"
            try files.createDirectory(atPath: parts, withIntermediateDirectories: true)
            let debs = try packages.map { try apt.download($0, into: parts) }
            try LinuxKernel(directory: "\(scratch)/done/\(flavour)").unpack(debs, scratch: "\(parts)/root")
            try files.removeItem(atPath: parts)
        }
        let busybox = try apt.download("busybox-static", into: scratch)
        try Tool.require(["dpkg-deb", "-x", busybox, "\(scratch)/busybox"])
        try files.moveItem(atPath: "\(scratch)/busybox/usr/bin/busybox", toPath: "\(scratch)/done/busybox")
        try? files.removeItem(atPath: place)
        try files.moveItem(atPath: "\(scratch)/done", toPath: place)
    }
}
