import BatonRuntime
import CLiveUpdate
import Glibc

/// Linux' Live Update Orchestrator, and how sessions of it are named here.
enum Orchestrator {
    /// Milliseconds to wait for other users of the device: one process can have it open at a time.
    static let deviceLimit: Int32 = 2000
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
