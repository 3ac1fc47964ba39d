import Foundation
import ProcessSupport

/// Mode liveupdate where systemd is the lab's first process: VMs are instances of `baton@.service`, as it is installed, and
/// `systemctl kexec` executes the new kernel. Their sessions go through it in systemd's store of descriptors. The case runs anew in each
/// Linux, as a service too, and finds in the lab's shared directory how far it is.
struct LabService {
    /// Of the lab's Linux, under the same guests.
    static let kexecs = 2
    private static let names = ["one", "two"]
    /// Does not start without a whole sandbox. The other one has what the service says.
    private static let strictName = "two"
    private static let user = "baton"
    private static let image = "/var/lib/baton/counter.bin"

    /// What is known of the guests from one Linux to the next.
    private struct Progress: Codable {
        var kexecs = 0
        /// The lab's boots so far, by the kernel's id.
        var hosts: [String] = []
        /// When they were saved.
        var counts: [UInt64] = []
        /// By phases, as the VMMs have measured it.
        var pauses: [String] = []
    }

    // MARK: Outside

    /// Installs Baton below what is the lab's file system, with VMs.
    static func prepare(_ files: LabFiles, directory: TemporaryDirectory) throws {
        if files.systemd.command == nil { print("downloading systemd of a later Debian, for the lab") }
        _ = try files.systemd.obtain()
        let builder = try GuestBuilder()
        try builder.buildKexecProgram(to: directory.file(LabHost.kexecProgram))
        let root = directory.file("case"), tree = "\(builder.sources)/../.."
        for path in ["etc/baton", "etc/systemd/system", "var/lib/baton"] {
            // The lab's users look for it.
            try FileManager.default.createDirectory(
                atPath: "\(root)/\(path)", withIntermediateDirectories: true, attributes: [.posixPermissions: 0o755])
        }
        try Tool.require(["make", "-s", "-C", tree, "install", "DESTDIR=\(root)", "PREFIX=/usr"])
        try builder.build(.counter, to: root + image)

        func put(_ path: String, _ text: String) throws {
            try text.write(toFile: root + path, atomically: true, encoding: .utf8)
        }
        func read(_ path: String) throws -> String { try String(contentsOfFile: path, encoding: .utf8) }
        try put(
            "/etc/systemd/system/baton@.service", try read("\(tree)/Sources/Packaging/systemd/baton@.service"))
        try put("/etc/systemd/system/case.target", target)
        try put("/etc/systemd/system/case.service", service(busybox: files.busybox))
        try put("/case-setup", setup)
        for name in names { try put("/etc/baton/\(name).conf", options(name)) }
        try put("/etc/passwd", try read("/etc/passwd") + "\(user):x:990:990::/var/lib/baton:/usr/sbin/nologin\n")
        try put("/etc/group", try read("/etc/group") + "\(user):x:990:\n")
        // As nothing of this machine's is mounted, and this is not the first start of a system.
        try put("/etc/fstab", "")
        try put("/etc/machine-id", "ba7011ab00000000000000000000000a\n")
    }

    private static let target = """
        [Unit]
        Description=The case
        AllowIsolate=yes
        Requires=basic.target
        After=basic.target
        Wants=case.service \(names.map { "baton@\($0).service" }.joined(separator: " "))

        """

    private static func service(busybox: String) -> String {
        """
        [Unit]
        Description=What is tried
        After=\(names.map { "baton@\($0).service" }.joined(separator: " "))

        [Service]
        Type=oneshot
        TimeoutStartSec=infinity
        ExecStart=/bin/sh -c 'sh \(LabHost.caseCommand); echo "\(LabHost.statusMark)$$?"; \(busybox) poweroff -f'
        StandardOutput=file:/dev/ttyS1
        StandardError=inherit

        """
    }

    /// What installing the package and its udev rule do.
    private static let setup = """
        set -e
        stty -onlcr -echo
        chown \(user):\(user) /var/lib/baton
        chgrp \(user) /dev/liveupdate
        chmod 660 /dev/liveupdate

        """

    private static func options(_ name: String) -> String {
        """
        -machine virt,memory-backend=ram
        -object memory-backend-memfd,id=ram,size=64M,share=on
        -m 64M
        -bios none
        -kernel \(image)
        \(name == strictName ? "-sandbox on,paths=/run/baton/\(name),paths=/var/lib/baton/\(name)" : "")

        """
    }

    // MARK: In the lab

    /// - Returns: what was seen, after the last kexec. At all others the lab's Linux ends in here.
    static func run(_ context: LabCase.Context) throws -> String {
        try LabHost.mountShared(context.directory)
        let record = "\(context.directory)/service-progress.json"
        var progress = Progress()
        if let data = FileManager.default.contents(atPath: record) {
            progress = try JSONDecoder().decode(Progress.self, from: data)
        }
        do {
            try check(&progress)
            guard progress.kexecs < kexecs else {
                return "\(kexecs) kexecs by systemd, nothing lost of \(names.count) services' guests: "
                    + progress.pauses.joined(separator: "; ")
            }
            try save()
            // A moment before, they stood still at that.
            progress.counts = try names.map { try count(try monitor($0)) }
            progress.kexecs += 1
            try JSONEncoder().encode(progress).write(to: URL(fileURLWithPath: record))
        } catch {
            throw Failure("after \(progress.kexecs) kexecs of the lab: \(error)\n\(states())")
        }
        try LabHost.restartBySystemd(
            kexec: "\(context.directory)/\(LabHost.kexecProgram)", kernel: context.files.own,
            initrd: "\(context.directory)/\(LabHost.initrdName)")
    }

    private static func monitor(_ name: String) throws -> QMPClient { try QMPClient(path: "/run/baton/\(name)/qmp") }

    private static func count(_ monitor: QMPClient) throws -> UInt64 { try monitor.guestWord(at: 0x8040_0008) }

    private static func property(_ property: String, _ name: String) throws -> String {
        try Tool.require(["systemctl", "show", "--value", "--property", property, "baton@\(name)"]).text
            .trimmingCharacters(in: .whitespacesAndNewlines)
    }

    private static func await(_ what: String, _ condition: () throws -> Bool) throws {
        let deadline = Clock.now + 120
        while try !condition() {
            guard Clock.now < deadline else { throw Failure("no \(what)") }
            usleep(50_000)
        }
    }

    /// The guests go on, and systemd has nothing left of what it kept.
    private static func check(_ progress: inout Progress) throws {
        let host = try String(contentsOfFile: "/proc/sys/kernel/random/boot_id", encoding: .utf8)
        guard !progress.hosts.contains(host) else { throw Failure("the lab has not executed another kernel") }
        progress.hosts.append(host)
        for (index, name) in names.enumerated() {
            let monitor = try monitor(name)
            guard try monitor.status() == "running" else { throw Failure("\(name) is \(try monitor.status())") }
            let found = try count(monitor)
            if progress.kexecs > 0, found < progress.counts[index] {
                throw Failure("the guest of \(name) has counted to \(found), and before to \(progress.counts[index])")
            }
            try Self.await("progress of \(name)") { try count(monitor) > found }
            try expectRightSum(monitor, name)
            guard try property("NRestarts", name) == "0" else { throw Failure("\(name) was restarted") }
            try expectSandbox(monitor, name)
            try Self.await("end of what was kept for \(name)") { try property("NFileDescriptorStore", name) == "0" }
            guard progress.kexecs > 0 else { continue }
            let cpr = try monitor.execute("query-cpr") as? [String: Any]
            guard let phases = cpr?["last-update"] as? [String: Any], let pause = LabLiveUpdate.pause(phases) else {
                throw Failure("\(name) does not say how long it took")
            }
            progress.pauses.append("\(name): \(pause)")
        }
    }

    /// What the user may write, and the VM's sandbox may not, is refused, and the guest goes on.
    private static func expectSandbox(_ monitor: QMPClient, _ name: String) throws {
        do {
            try monitor.execute("cpr-save", ["filename": "/var/lib/baton/elsewhere", "mode": "liveupdate"])
        } catch {
            guard "\(error)".contains("-sandbox paths=/var/lib/baton ") else { throw error }
            return
        }
        throw Failure("\(name) is in no sandbox that keeps it from other VMs' files")
    }

    /// The guest's checksum is the element of its linear congruential sequence that its count names.
    private static func expectRightSum(_ monitor: QMPClient, _ name: String) throws {
        try monitor.execute("stop")
        let count = try count(monitor)
        let found = try monitor.guestWord(at: count & 1 == 0 ? 0x8040_0010 : 0x8040_0018)
        // Each step is x -> a x + c; so are two, four, ... of them.
        var sum: UInt64 = 0, a: UInt64 = 6_364_136_223_846_793_005, c: UInt64 = 1_442_695_040_888_963_407
        for bit in 0..<UInt64.bitWidth {
            if count >> bit & 1 == 1 { sum = sum &* a &+ c }
            (a, c) = (a &* a, c &* (a &+ 1))
        }
        guard found == sum else { throw Failure("the guest of \(name) has \(found) at \(count), not \(sum)") }
        try monitor.execute("cont")
    }

    private static func save() throws {
        let tool = ["baton-ctl", "host-update", "--timeout-ms", "60000"]
        try Tool.require(tool + ["--check"])
        try Tool.require(tool + ["--prepare", "--limit", "120"])
        for name in names {
            try Self.await("session of \(name) in systemd's store") {
                try property("NFileDescriptorStore", name) == "1"
            }
        }
    }

    /// For whoever looks for the fault.
    private static func states() -> String {
        names.compactMap { try? Tool.run(["systemctl", "status", "--no-pager", "baton@\($0)"]).text }
            .joined(separator: "\n")
    }
}
