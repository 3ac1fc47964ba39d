import Foundation
import ProcessSupport

/// A VM with `DebianImage`, started by Debian's UEFI firmware and GRUB, set up by cloud-init, on the network by
/// `-nic user`, and reached by SSH.
final class DebianMachine {
    let session: Session
    let arguments: [String]
    private let directory: TemporaryDirectory
    private let port: UInt16
    private let progress: Progress
    private let key: String

    static let hostName = "baton-guest"
    private static let ready = "baton-cloud: ready"

    /// - Throws: what of this machine's is missing to run it, with packages.
    static func check(_ image: DebianImage) throws {
        let missing =
            [("ssh", "openssh-client"), ("ssh-keygen", "openssh-client"), ("passt", "passt")]
            .filter { Tool.find($0.0) == nil }.map { "\($0.0) (\($0.1))" } + image.missing()
        guard missing.isEmpty else { throw Failure("missing: " + missing.joined(separator: ", ")) }
    }

    /// - Parameter extra: more options for the VMM.
    init(
        vmm: String, image: DebianImage, cache: String, directory: TemporaryDirectory, harts: Int, extra: [String] = [],
        progress: Progress
    ) throws {
        try Self.check(image)
        self.directory = directory
        self.progress = progress
        guard let firmware = try PeerCommand.obtain(.firmware, cache: cache).first else {
            throw Failure("Debian's UEFI firmware for riscv64 is not to be had")
        }
        let disk = directory.file("disk.img")
        try image.copy(to: disk)
        let variables = directory.file("vars.fd")
        try FileManager.default.copyItem(
            atPath: firmware.replacingOccurrences(of: "_CODE.fd", with: "_VARS.fd"), toPath: variables)
        key = directory.file("key")
        try Tool.require(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key])
        let seed = directory.file("seed.iso")
        try Self.seed(publicKey: try String(contentsOfFile: key + ".pub", encoding: .utf8)).write(to: seed)
        port = try FreePort.tcp()
        let socketPath = directory.file("qmp.sock")
        arguments =
            [
                vmm, "-name", "baton-demo", "-machine", "virt,memory-backend=ram", "-smp", "\(harts)", "-m", "1G",
                "-object", "memory-backend-memfd,id=ram,size=1G,share=on", "-cpr-enable", "restart",
                "-only-cpr-capable",
                "-drive", "if=pflash,unit=0,format=raw,readonly=on,file=\(firmware)",
                "-drive", "if=pflash,unit=1,format=raw,file=\(variables)",
                "-drive", "file=\(disk),format=raw,if=none,id=root,cache=unsafe", "-device",
                "virtio-blk-pci,drive=root",
                "-drive", "file=\(seed),format=raw,if=none,id=seed,readonly=on", "-device", "virtio-blk-pci,drive=seed",
                "-nic", "user,model=virtio-net-pci,hostfwd=tcp:127.0.0.1:\(port)-:22", "-device", "virtio-rng-pci",
            ] + extra + [
                "-nographic", "-serial", "stdio", "-monitor", "none", "-qmp", "unix:\(socketPath),server=on,wait=off",
            ]
        session = try Session(arguments: arguments, socketPath: socketPath, directory: directory.path)
    }

    private static func seed(publicKey: String) -> SeedDisk {
        let user = """
            #cloud-config
            hostname: \(hostName)
            disable_root: false
            ssh_genkeytypes: [ed25519]
            ssh_authorized_keys: ["\(publicKey.trimmingCharacters(in: .whitespacesAndNewlines))"]
            growpart: {mode: "off"}
            resize_rootfs: false
            package_update: false
            runcmd: [[sh, -c, "echo; echo '\(ready)' >/dev/console"]]

            """
        let network = """
            version: 2
            ethernets:
              guest:
                match: {name: "e*"}
                dhcp4: true

            """
        return SeedDisk(files: [
            ("user-data", Data(user.utf8)), ("meta-data", Data("instance-id: baton-demo\n".utf8)),
            ("network-config", Data(network.utf8)),
        ])
    }

    /// Waits until cloud-init is through and the guest can be reached.
    func boot(seconds: Double) throws {
        let start = Clock.now
        let console = session.console
        // What firmware, GRUB, systemd and cloud-init say as the first.
        var steps = ["Loading Linux", "systemd", "cloud-init", "login:"]
        var isReady = false
        console.onLine = { [progress] line in
            if line.contains(Self.ready) { isReady = true }
            guard let found = steps.firstIndex(where: { line.contains($0) }) else { return }
            // Without what a terminal would carry out.
            let text = String(
                String.UnicodeScalarView(line.unicodeScalars.filter { $0.value >= 0x20 && $0 != "\u{7f}" }))
            progress.say(String(format: "  %4.0f s: ", Clock.now - start) + text.prefix(90))
            steps.remove(at: found)
        }
        try session.connect()
        session.onWait = { [progress] in
            progress.update("booting, \(Int(Clock.now - start)) s: \(console.recentLines.last ?? "")")
        }
        try session.wait(for: "end of cloud-init", seconds: seconds) { isReady }
        let name = try run("cat /etc/hostname && cloud-init status --wait")
        guard name.contains(Self.hostName), name.contains("status: done") else {
            throw Failure("cloud-init has not done what the seed says: \(name)")
        }
        session.onWait = nil
        progress.say(String(format: "the guest is reached by SSH, %.0f s after its start", Clock.now - start))
    }

    /// What starts a program in the guest as root, before the program's own words.
    ///
    /// By a shell, as ssh closes all descriptors that it does not know: one of them tells Foundation of a process' end.
    var ssh: [String] {
        [
            "sh", "-c", "\"$@\"; exit $?", "sh", "ssh", "-q", "-F", "/dev/null", "-i", key, "-p", "\(port)", "-o",
            "StrictHostKeyChecking=no", "-o",
            "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes", "-o", "ConnectTimeout=60", "root@127.0.0.1",
        ]
    }

    /// Runs a program in the guest.
    /// - Returns: what it wrote.
    @discardableResult
    func run(_ command: String) throws -> String {
        let output = try Tool.require(ssh + [command]).text
        session.console.drain()
        return output
    }

    /// Replaces the VMM.
    /// - Parameter number: how many generations of it there have been then.
    /// - Returns: what is to be said of it.
    func update(number: Int) throws -> String {
        let pid = session.process.pid
        try session.command("cpr-update", ["argv": arguments])
        let cpr = try session.command("query-cpr") as? [String: Any]
        guard cpr?["generation"] as? Int == number, session.process.isRunning else {
            throw Failure("the VMM has not been replaced \(number) times: \(cpr ?? [:])")
        }
        return "update \(number): PID \(pid) (same), \(session.pause() ?? "pause unknown")"
    }

    /// Lets the guest shut itself down, and waits for the end of the VMM.
    func shutDown() throws {
        // The connection ends with the guest.
        _ = try Tool.run(ssh + ["systemctl poweroff"])
        try session.waitForEnd()
    }
}
