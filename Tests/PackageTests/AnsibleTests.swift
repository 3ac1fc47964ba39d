import Foundation
import TestSupport
import Testing

extension PackageTests {
    static let hasAnsible =
        Products.find("ansible-playbook") != nil
        && FileManager.default.fileExists(atPath: "/usr/lib/python3/dist-packages/apt")

    /// Stands for ssh: its last two arguments are the host, which has a script of its own, and the command.
    private static let ssh = """
        #!/bin/sh
        directory=$(dirname "$0")
        while [ $# -gt 2 ]; do shift; done
        exec "$directory/$1" sh -c "$2"
        """

    private func playbook(_ directory: TemporaryDirectory, _ package: String) throws -> (
        succeeded: Bool, output: String
    ) {
        let source = "\(Products.repository)/Sources/Packaging/ansible"
        let process = try ChildProcess(
            [
                "ansible-playbook", "-i", directory.file("hosts"), "\(source)/update.yml", "-e",
                "baton_deb=\(package) baton_become=false baton_hosts_at_a_time=2",
            ],
            environment: [
                "ANSIBLE_SSH_EXECUTABLE": directory.file("ssh"), "ANSIBLE_SSH_TRANSFER_METHOD": "piped",
                "ANSIBLE_PIPELINING": "1", "ANSIBLE_HOST_KEY_CHECKING": "0", "ANSIBLE_NOCOWS": "1",
                "ANSIBLE_LOCAL_TEMP": directory.file("local"), "ANSIBLE_SSH_ARGS": "", "HOME": directory.path,
                "ANSIBLE_FORCE_COLOR": "0", "LC_ALL": "C.UTF-8",
            ])
        let exit = try process.waitForExit(by: .seconds(600))
        return (exit == .status(0), process.output + process.errors)
    }

    @Test(
        "The Ansible role rolls an update over several hosts, and stops at the first failure",
        .enabled(if: hasAnsible, "needs ansible-playbook and python3-apt"),
        .enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"))
    func ansible() throws {
        let directory = try TemporaryDirectory()
        let roots = try (0..<3).map { _ in try installed() }
        try directory.write("ssh", Self.ssh)
        var hosts = ""
        for (index, root) in roots.enumerated() {
            try root.run("systemctl start \(Self.unit)")
            try directory.write("host\(index)", "#!/bin/sh\nexec \(root.entry.joined(separator: " ")) \"$@\"\n")
            hosts += "host\(index) ansible_python_interpreter=/usr/bin/python3\n"
        }
        try directory.write("hosts", hosts)
        for name in ["ssh", "host0", "host1", "host2"] { chmod(directory.file(name), 0o755) }
        let memories = try roots.map { try SharedMemory(path: "\($0.shared)/ram") }
        func versions() throws -> [String] {
            try roots.map {
                try $0.run("dpkg-query -W -f '${Version}' baton; baton-ctl list --json | grep -o 'updates.*[0-9]'")
            }
        }

        let packages = try Self.packages.get().directory
        let done = try playbook(directory, packages.file("baton_2.0.deb"))
        #expect(done.succeeded, "\(done.output)")
        for (root, memory) in zip(roots, memories) {
            try wait(root, memory)
            #expect(try root.run("dpkg-query -W -f '${Version}' baton") == "2.0")
            #expect(!(try root.run("baton-ctl list").contains("*")))
        }
        let before = try versions()

        // Two hosts get the broken package, and refuse it; the third does not hear of it.
        let broken = try playbook(directory, packages.file("baton_3.0.deb"))
        #expect(!broken.succeeded && broken.output.contains("failed"), "\(broken.output)")
        for (root, memory) in zip(roots, memories) { try wait(root, memory) }
        #expect(try roots[2].run("dpkg-query -W -f '${Version}' baton") == "2.0")
        #expect(try versions()[2] == before[2])
        #expect(try roots[0].property("ActiveState", of: Self.unit) == "active")
    }
}
