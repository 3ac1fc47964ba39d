import ArgumentParser
import Foundation
import ProcessSupport

/// `baton-demo peers`: a guest whose disk, shared directory and network are other processes' and the
/// kernel's, and what these notice when the VMM is replaced: nothing.
struct PeersCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "peers",
        abstract: "Replaces the VMM under a guest that works on qemu-storage-daemon, virtiofsd and a tap interface.")

    @Option(help: "The VMM to run (default: baton beside this program).")
    var vmm: String?

    @Option(help: "How often to replace the VMM.")
    var updates = 200

    @Option(help: "Replace the VMM every second for so many minutes, instead of a number of times.")
    var minutes: Double?

    @Option(help: "One in so many updates is to a new VMM with a random fault (0: none).")
    var faults = 0

    @Option(help: "The seed of the faults (default: random; it is printed).")
    var seed: UInt64?

    @Option(help: "Harts of the guest, each with a queue of the disk's.")
    var harts = 1

    @Option(help: "Directory to keep downloads in.")
    var cache = ".cache"

    @Option(help: "Seconds that the guest may take to boot.")
    var bootTimeout = 240.0

    @Option(help: "Keep the logs in this directory.")
    var keep: String?

    @Flag(help: "Only say what of this machine's is missing; status 1 if something is.")
    var check = false

    @Flag(help: .hidden)
    var inNamespace = false

    func run() throws {
        setvbuf(stdout, nil, Int32(_IOLBF), 0)
        let missing = Self.missing()
        guard missing.isEmpty else { throw Failure("missing: " + missing.joined(separator: ", ")) }
        if check { return }
        let progress = Progress()
        let files = try DebianInstaller(cache: cache).obtain { progress.say($0) }
        guard inNamespace else { return try enterNamespace() }

        let directory = try TemporaryDirectory.scratch()
        defer { preserve(directory) }
        let backEnds = try BackEnds(directory: directory, diskQueues: harts)
        let initrd = try Guest.debianInitrd(
            files: files, script: try GuestBuilder().initScript("peers"), directory: directory)
        let socketPath = directory.file("qmp.sock")
        let arguments = [
            try RunCommand.locate(vmm: vmm), "-name", "baton-demo",
            "-machine", "virt,memory-backend=ram,aia=aplic-imsic", "-smp", "\(harts)", "-m", "512M",
            "-object", "memory-backend-memfd,id=ram,size=512M,share=on", "-cpr-enable", "restart", "-only-cpr-capable",
            "-kernel", files.kernel, "-initrd", initrd, "-append", "console=ttyS0 rdinit=/baton/init",
            "-chardev", "socket,id=disk,path=\(backEnds.diskSocket)",
            "-device", "vhost-user-blk-pci,chardev=disk,num-queues=\(harts)",
            "-chardev", "socket,id=share,path=\(backEnds.shareSocket)",
            "-device", "vhost-user-fs-pci,chardev=share,tag=share",
            "-netdev", "tap,id=net,ifname=tap0,script=no,downscript=no",
            "-device", "virtio-net-pci,netdev=net,mac=52:54:00:12:34:56",
            "-nodefaults", "-nographic", "-serial", "stdio", "-monitor", "none",
            "-qmp", "unix:\(socketPath),server=on,wait=off",
        ]
        progress.say(
            "booting Debian's riscv64 kernel under \(arguments[0]), on qemu-storage-daemon, virtiofsd and a tap")
        let session = try Session(arguments: arguments, socketPath: socketPath, directory: directory.path)
        let demonstration = PeersDemonstration(
            session: session, arguments: arguments, backEnds: backEnds,
            flood: PingFlood(address: "10.9.0.2"), progress: progress)
        try demonstration.boot(seconds: bootTimeout)
        guard minutes != nil || faults > 0 else {
            for number in 0..<max(updates, 0) { try demonstration.update(number: number + 1) }
            return try demonstration.finish(updates: updates)
        }
        var endurance = Endurance(
            demonstration, session: session, arguments: arguments, faults: faults,
            seed: seed ?? UInt64.random(in: 0...UInt64.max), progress: progress)
        try endurance.run(seconds: minutes.map { $0 * 60 }, updates: updates)
    }

    /// What this machine lacks, each with the package that has it.
    static func missing() -> [String] {
        var missing = BackEnds.missing()
        for (program, package) in [("ip", "iproute2"), ("unshare", "util-linux")]
        where Tool.find(program) == nil {
            missing.append("\(program) (\(package))")
        }
        if access("/dev/net/tun", R_OK | W_OK) != 0 { missing.append("/dev/net/tun") }
        if let refused = try? Tool.run(["unshare"] + namespace + ["true"]), refused.status != 0 {
            missing.append("a network namespace of its own (\(refused.reason))")
        }
        return missing
    }

    /// Options of unshare(1): without root, as the root of a user namespace.
    private static var namespace: [String] { (geteuid() == 0 ? [] : ["--map-root-user"]) + ["--net", "--"] }

    /// Runs this command again in a network namespace, which goes, with its interfaces, when the
    /// last of its processes has ended.
    private func enterNamespace() throws {
        guard let unshare = Tool.find("unshare") else { throw Failure("unshare (util-linux) was not found") }
        let own = URL(fileURLWithPath: "/proc/self/exe").resolvingSymlinksInPath().path
        // Foundation waits for processes by a socket on the loopback interface, which is down at first.
        let prepare = """
            set -e
            ip link set lo up
            ip tuntap add dev tap0 mode tap
            ip addr add 10.9.0.1/24 dev tap0
            ip link set tap0 up
            exec "$@"
            """
        let arguments =
            [unshare] + Self.namespace + ["sh", "-c", prepare, "sh", own] + CommandLine.arguments.dropFirst()
            + ["--in-namespace"]
        var argv: [UnsafeMutablePointer<CChar>?] = arguments.map { strdup($0) }
        argv.append(nil)
        execv(unshare, argv)
        throw Failure.system("cannot run \(unshare)")
    }

    private func preserve(_ directory: TemporaryDirectory) {
        guard let keep else { return }
        try? FileManager.default.createDirectory(atPath: keep, withIntermediateDirectories: true)
        for name in ["console.log", "vmm.log", "storage.log", "files.log", "ping.log"] {
            try? FileManager.default.removeItem(atPath: "\(keep)/\(name)")
            try? FileManager.default.copyItem(atPath: directory.file(name), toPath: "\(keep)/\(name)")
        }
    }
}
