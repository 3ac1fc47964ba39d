import Foundation
import TestSupport
import Testing

/// `make deb`, and what an operator does with the packages.
@Suite(
    "The Debian packages", .serialized,
    .enabled(
        if: ProcessInfo.processInfo.environment["BATON_PACKAGE_TESTS"] != nil,
        "boots systemd for some minutes: set BATON_PACKAGE_TESTS=1"),
    .enabled(if: SystemdRoot.obstacle == nil, "\(SystemdRoot.obstacle ?? "")"))
struct PackageTests {
    /// Three packages for all tests: one, a newer one, and one whose VMM does not start.
    struct Packages {
        let directory: TemporaryDirectory

        init() throws {
            directory = try TemporaryDirectory()
            let repository = Products.repository
            _ = try ChildProcess.run(
                ["make", "-s", "-C", repository, "deb", "DEBVERSION=1.0", "LINTIAN=true"],
                environment: ["DPKG_DEB_COMPRESSOR_TYPE": "gzip", "DPKG_DEB_COMPRESSOR_LEVEL": "1"], by: .seconds(300))
            let packages = "\(repository)/.build/packages"
            let names = try FileManager.default.contentsOfDirectory(atPath: packages)
            guard let first = names.first(where: { $0.hasPrefix("baton_1.0_") && $0.hasSuffix(".deb") }) else {
                throw TestError("no package: \(names)")
            }
            let tree = directory.file("tree")
            _ = try ChildProcess.run(["dpkg-deb", "-R", "\(packages)/\(first)", tree])
            try pack(tree, "1.0")
            try pack(tree, "2.0")
            try "#!/bin/sh\necho this release is broken >&2\nexit 3\n"
                .write(toFile: "\(tree)/usr/lib/baton/bin/baton", atomically: false, encoding: .utf8)
            try pack(tree, "3.0")
        }

        private func pack(_ tree: String, _ version: String) throws {
            let control = "\(tree)/DEBIAN/control"
            let text = try String(contentsOfFile: control, encoding: .utf8)
            let lines = text.split(separator: "\n", omittingEmptySubsequences: false)
                .map { $0.hasPrefix("Version:") ? "Version: \(version)" : $0 }
            try lines.joined(separator: "\n").write(toFile: control, atomically: true, encoding: .utf8)
            _ = try ChildProcess.run(
                ["dpkg-deb", "--root-owner-group", "-Znone", "-b", tree, directory.file("baton_\(version).deb")],
                by: .seconds(120))
        }
    }
    static let packages = Result { try Packages() }

    static let page = 0x40_0000
    static let unit = "baton@vm.service"

    /// A root with the first package, and a VM that counts.
    func installed() throws -> SystemdRoot {
        let packages = try Self.packages.get()
        let root = try SystemdRoot()
        for version in ["1.0", "2.0", "3.0"] {
            try FileManager.default.linkItem(
                atPath: packages.directory.file("baton_\(version).deb"), toPath: "\(root.shared)/baton_\(version).deb")
        }
        try FileManager.default.copyItem(
            atPath: try GuestBuilder.flat("counter/counter.c"), toPath: "\(root.shared)/counter")
        let said = try root.run("dpkg -i /shared/baton_1.0.deb", by: .seconds(120))
        #expect(!said.contains("baton-ctl"))
        try root.run(
            """
            truncate -s 16M /shared/ram && chown baton /shared/ram && chmod 755 /shared/.. /shared
            cat >/etc/baton/vm.conf <<END
            # A guest that counts in its memory
            -machine virt,memory-backend=ram -m 16M
            -object memory-backend-file,id=ram,size=16M,mem-path=/shared/ram,share=on
            -bios none
            -kernel /shared/counter
            END
            """)
        return root
    }

    func wait(_ root: SystemdRoot, _ memory: SharedMemory) throws {
        let before = memory.load(UInt64.self, at: Self.page + 8)
        try eventually("the guest counts; \((try? root.run("systemctl status \(Self.unit) || true")) ?? "")") {
            memory.load(UInt64.self, at: Self.page + 8) > before
        }
    }

    @Test(
        "A service is started, reloaded onto a newer package, survives a broken one, and is removed",
        .enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"))
    func life() throws {
        let root = try installed()
        try root.run("systemctl start \(Self.unit)")
        #expect(try root.property("ActiveState", of: Self.unit) == "active")
        let memory = try SharedMemory(path: "\(root.shared)/ram")
        try wait(root, memory)
        let pid = try root.property("MainPID", of: Self.unit)
        #expect(try root.run("ps -o user= -p \(pid)").contains("baton"))
        try eventually("its status") { try root.property("StatusText", of: Self.unit) == "running" }
        let listed = try root.run("baton-ctl list")
        #expect(listed.contains("vm    \(pid)") || listed.contains("running"), "\(listed)")
        #expect(!listed.contains("*"))
        #expect(try root.run("curl -s --unix-socket /run/baton/vm/metrics http://localhost/metrics || true") != "")

        // A newer package leaves the VM alone, and says how to update it.
        let said = try root.run("dpkg -i /shared/baton_2.0.deb", by: .seconds(120))
        #expect(said.contains("VMs that run (1) go on") && said.contains("baton-ctl update --all"), "\(said)")
        #expect(try root.property("MainPID", of: Self.unit) == pid)
        #expect(try root.run("baton-ctl list").contains("*"))
        try root.run("systemctl reload \(Self.unit)")
        #expect(!(try root.run("baton-ctl list").contains("*")))
        try wait(root, memory)
        // The old VMM, which says so, may need a moment.
        try eventually("the main process") { try root.property("MainPID", of: Self.unit) == pid }
        try eventually("its status") { try root.property("StatusText", of: Self.unit).contains("updated to") }

        // A broken one is refused, and the service is still up.
        try root.run("dpkg -i /shared/baton_3.0.deb", by: .seconds(120))
        #expect(try root.failure(of: "systemctl reload \(Self.unit)").contains("failed"))
        try wait(root, memory)
        #expect(try root.property("ActiveState", of: Self.unit) == "active")
        #expect(try root.property("MainPID", of: Self.unit) == pid)
        // Also when nobody tries it first: the guest is then with another process, and systemd knows it.
        // It must not see the end of the process first, however busy the host is.
        let busy = try (0..<2).map { _ in try ChildProcess(["sh", "-c", "while :; do :; done"]) }
        defer { for process in busy { process.signal(SIGKILL) } }
        var last = pid
        for _ in 0..<5 {
            #expect(
                try root.failure(of: "baton-ctl update vm --no-preflight").contains("still with the old VMM"))
            try wait(root, memory)
            #expect(try root.property("ActiveState", of: Self.unit) == "active")
            let next = try root.property("MainPID", of: Self.unit)
            #expect(next != last)
            #expect(try root.run("baton-ctl list").contains(" \(next) "))
            last = next
        }
        #expect(try root.property("NRestarts", of: Self.unit) == "0")
        // Back to one that works.
        try root.run("dpkg -i /shared/baton_2.0.deb", by: .seconds(120))
        try root.run("systemctl reload \(Self.unit)")
        try wait(root, memory)
        try eventually("the main process") { try root.property("MainPID", of: Self.unit) == last }

        // Its end. This guest does not look at the power button.
        try root.run(
            """
            mkdir -p /run/systemd/system/\(Self.unit).d
            printf '[Service]\\nExecStop=\\nExecStop=baton-ctl shutdown --qmp /run/baton/vm/qmp --limit 1\\n' \
                >/run/systemd/system/\(Self.unit).d/limit.conf
            systemctl daemon-reload
            """)
        try root.run("dpkg -r baton", by: .seconds(120))
        #expect(try root.property("ActiveState", of: Self.unit) == "inactive")
        #expect(try root.property("Result", of: Self.unit) == "success")
        #expect(try root.run("ls -d /usr/lib/baton /run/baton/vm 2>/dev/null || true").isEmpty)
        #expect(try root.run("cat /etc/baton/vm.conf").contains("counts"))
    }

    @Test(
        "A VMM whose event loop hangs is ended by the watchdog, and the VM starts anew",
        .enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"))
    func watchdog() throws {
        let root = try installed()
        try root.run(
            """
            mkdir -p /etc/systemd/system/\(Self.unit).d
            printf '[Service]\\nWatchdogSec=2\\nTimeoutAbortSec=1\\n' >/etc/systemd/system/\(Self.unit).d/watchdog.conf
            systemctl daemon-reload
            systemctl start \(Self.unit)
            """)
        let memory = try SharedMemory(path: "\(root.shared)/ram")
        try wait(root, memory)
        // Over an update the new VMM goes on with the signs of life.
        try root.run("systemctl reload \(Self.unit)")
        let pid = try root.property("MainPID", of: Self.unit)
        let before = memory.load(UInt64.self, at: Self.page + 8)
        try root.run("sleep 5")
        #expect(try root.property("NRestarts", of: Self.unit) == "0")
        #expect(memory.load(UInt64.self, at: Self.page + 8) > before)
        try root.run("kill -STOP \(pid)")
        try eventually("a restart", by: .seconds(60)) { try root.property("NRestarts", of: Self.unit) == "1" }
        try eventually("the service") { try root.property("ActiveState", of: Self.unit) == "active" }
        #expect(try root.property("MainPID", of: Self.unit) != pid)
    }

    @Test("The packages have no errors or warnings", .enabled(if: Products.find("lintian") != nil, "needs lintian"))
    func lintian() throws {
        _ = try Self.packages.get()
        let packages = "\(Products.repository)/.build/packages"
        let changes = try #require(
            try FileManager.default.contentsOfDirectory(atPath: packages).first { $0.hasSuffix(".changes") })
        _ = try ChildProcess.run(
            ["lintian", "--allow-root", "--fail-on", "error,warning", "\(packages)/\(changes)"], by: .seconds(300))
    }
}
