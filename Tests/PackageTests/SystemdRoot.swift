import Foundation
import TestSupport

/// A copy of this machine's files, on which systemd runs as the first process of namespaces of its own. What happens
/// in it changes nothing outside, and goes with it.
final class SystemdRoot {
    private let directory: TemporaryDirectory
    private let process: ChildProcess
    /// systemd, as it is seen from outside.
    private let manager: pid_t
    /// A directory that both sides see: `/shared` inside.
    var shared: String { directory.file("shared") }

    /// What it needs, or why it is not to be had.
    static let obstacle: String? = {
        guard geteuid() == 0 else { return "needs root" }
        for program in ["unshare", "nsenter", "chroot", "dpkg", "dpkg-buildpackage", "dh", "patchelf"]
        where Products.find(program) == nil { return "needs \(program)" }
        guard FileManager.default.isExecutableFile(atPath: "/lib/systemd/systemd") else { return "needs systemd" }
        do {
            let root = try SystemdRoot()
            _ = try root.run("true")
            return nil
        } catch {
            return "systemd cannot be run here: \(error)"
        }
    }()

    /// Makes the root, and starts systemd without any of this machine's services.
    private static let script = """
        set -e
        cd "$1"
        mount -t tmpfs tmpfs layers
        mkdir layers/upper layers/work
        mount -t overlay overlay -o lowerdir=/,upperdir=layers/upper,workdir=layers/work root
        cd root
        mount -t proc proc proc
        mount -t sysfs -o ro sysfs sys
        mount -t tmpfs -o mode=755 tmpfs dev
        for name in null zero full random urandom tty; do
            touch dev/$name
            mount --bind /dev/$name dev/$name
        done
        mkdir dev/pts dev/shm
        mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
        ln -s pts/ptmx dev/ptmx
        ln -s /proc/self/fd dev/fd
        mount -t tmpfs tmpfs run
        mount -t tmpfs tmpfs tmp
        mount -t tmpfs tmpfs sys/fs/cgroup
        mount -t cgroup2 cgroup2 sys/fs/cgroup
        mkdir shared
        mount --bind "$1/shared" shared
        rm -rf etc/systemd/system/*.wants etc/systemd/system/*.requires usr/sbin/policy-rc.d
        for unit in systemd-udevd systemd-networkd systemd-resolved systemd-timesyncd getty@ console-getty; do
            ln -sf /dev/null etc/systemd/system/$unit.service
        done
        exec chroot . env -i container=test PATH="$PATH" /lib/systemd/systemd --unit=basic.target \
            --log-target=console --show-status=0
        """

    init() throws {
        directory = try TemporaryDirectory()
        for name in ["layers", "root", "shared"] {
            try FileManager.default.createDirectory(atPath: directory.file(name), withIntermediateDirectories: true)
        }
        process = try ChildProcess([
            "unshare", "--mount", "--pid", "--fork", "--uts", "--ipc", "--cgroup", "--kill-child", "sh", "-c",
            Self.script, "sh", directory.path,
        ])
        var child: pid_t = 0
        let process = self.process
        try eventually("the namespace's first process; \(process.report)") {
            let text = try? String(contentsOfFile: "/proc/\(process.pid)/task/\(process.pid)/children", encoding: .utf8)
            child = text.flatMap { pid_t($0.trimmingCharacters(in: .whitespaces)) } ?? 0
            return child > 0 || !process.isRunning
        }
        manager = child
        try eventually("systemd is up; \(process.report)") {
            guard process.isRunning else { throw TestError("no systemd: \(process.report)") }
            let state = try ChildProcess(inside(["systemctl", "is-system-running"]))
            _ = try state.waitForExit()
            return ["running", "degraded"].contains(state.output.trimmingCharacters(in: .whitespacesAndNewlines))
        }
    }

    deinit {
        // The namespace's other processes end with the first.
        process.signal(SIGKILL)
        _ = try? process.waitForExit()
    }

    /// What runs a command in the root.
    var entry: [String] {
        ["nsenter", "--target", String(manager), "--mount", "--pid", "--uts", "--ipc", "--cgroup", "--root", "--wd=/"]
    }
    private func inside(_ command: [String]) -> [String] { entry + command }
    /// What it writes to its standard error is output too. The command may end with a here-document.
    private static func shell(_ command: String) -> [String] { ["sh", "-c", "exec 2>&1\n" + command] }

    /// Runs a shell's command in the root.
    /// - Throws: an error with its output if it fails.
    @discardableResult
    func run(_ command: String, by deadline: Deadline = .patient) throws -> String {
        try ChildProcess.run(inside(Self.shell(command)), by: deadline)
    }

    /// What a command says that is to fail.
    func failure(of command: String) throws -> String {
        let process = try ChildProcess(inside(Self.shell(command)))
        guard try process.waitForExit(by: .seconds(120)) != .status(0) else {
            throw TestError("\(command) succeeded: \(process.output)")
        }
        return process.output
    }

    /// A property of a unit, as `systemctl show` gives it.
    func property(_ name: String, of unit: String) throws -> String {
        try run("systemctl show --value --property=\(name) '\(unit)'").trimmingCharacters(in: .whitespacesAndNewlines)
    }
}
