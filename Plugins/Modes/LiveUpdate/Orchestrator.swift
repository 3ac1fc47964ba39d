import BatonRuntime
import CLiveUpdate
import Glibc

/// Linux' Live Update Orchestrator, and how sessions of it are named here.
enum Orchestrator {
    /// Milliseconds to wait for other users of the device: one process can have it open at a time.
    static let deviceLimit: Int32 = 2000
    private static let device = "/dev/liveupdate"
    /// Microseconds between two attempts to open it.
    private static let deviceInterval: UInt32 = 5000
    /// In the service manager's store.
    static let storeName = "liveupdate"
    private static let prefix = "baton-"

    /// What a session has under which number.
    enum Token {
        static let state: UInt64 = 0
        static let checkpoint: UInt64 = 1
        /// Of the first block of guest memory; the others follow.
        static let memory: UInt64 = 2
    }

    /// - Throws: why this process can use no session.
    static func check() throws(VMMError) {
        guard baton_liveupdate_access() != 0 else { return }
        let code = errno
        guard code == ENOENT else {
            throw .system(
                "/dev/liveupdate cannot be opened", errno: code,
                hint: "The user of the VMM needs to read and write it: see host-updates.md.")
        }
        throw VMMError(
            "the host's kernel has no Live Update Orchestrator (/dev/liveupdate)",
            hint: "That takes Linux 6.19 or later with CONFIG_LIVEUPDATE, started with kho=on liveupdate=on.")
    }

    /// Makes a session. The device is opened as files are in a sandbox: that may be older than this module.
    /// - Returns: its descriptor, owned by the caller; -1 and errno.
    static func createSession(_ name: String) -> Int32 {
        let deadline = EventLoop.now + Int64(deviceLimit) * 1_000_000
        var fd = HostAccess.open(device, O_RDWR)
        while fd < 0, errno == EBUSY, EventLoop.now < deadline {
            usleep(deviceInterval)
            fd = HostAccess.open(device, O_RDWR)
        }
        guard fd >= 0 else { return -1 }
        let session = baton_session_create(fd, name)
        let code = errno
        close(fd)
        errno = code
        return session
    }

    /// The name of a VM's session: by its uuid, or else its name.
    static func sessionName(of vm: VirtualMachine) throws(VMMError) -> String {
        guard let name = sessionNames(of: vm).first else {
            throw VMMError(
                "the VM has neither a name nor a uuid, by which its guest could be found again",
                hint: "Start it with -name or -uuid.")
        }
        guard name.utf8.count < Int(BATON_SESSION_NAME_SIZE) else {
            throw VMMError(
                "the VM's name has \(name.utf8.count - prefix.utf8.count) bytes, and a session's name takes "
                    + "\(Int(BATON_SESSION_NAME_SIZE) - 1 - prefix.utf8.count) of it",
                hint: "Start it with -uuid, or a shorter -name.")
        }
        return name
    }

    /// All names that a VM's session may have, the likeliest first.
    static func sessionNames(of vm: VirtualMachine) -> [String] {
        [vm.givenUUID, vm.name].compactMap { $0 }.filter { !$0.isEmpty }.map { prefix + $0 }
    }
}
