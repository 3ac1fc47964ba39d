import BatonBase
import BatonCPR
import BatonDeviceKit
import BatonMachine
import CBaton
import Glibc

/// The sandbox that a VM is in from before its guest's first instruction, for as long as there is the VM.
///
/// It is put on once, by the VM's first VMM, on its main thread while that is the only one; all threads, all later VMMs and
/// all that they execute inherit it. Filters and Landlock domains only ever add up, so none is added by an update. What
/// later VMMs need beyond it they get from the warden. `threat-model.md` says what that means for a guest that breaks out.
public struct Sandbox {
    /// What the command line says, in QEMU's words.
    public struct Options {
        public var allowsObsolete = false
        public var allowsPrivileges = false
        public var allowsSpawning = true
        public var allowsResourceControl = true
        /// Directories in which the VM may do everything, for what comes later.
        public var paths: [String] = []
        public init() {}
    }

    /// A user to become.
    public struct User {
        /// NULL for one that is given by numbers.
        public var name: String?
        public var uid: UInt32
        public var gid: UInt32
        public init(name: String?, uid: UInt32, gid: UInt32) { (self.name, self.uid, self.gid) = (name, uid, gid) }
    }

    private let options: Options

    public init(_ options: Options) { self.options = options }

    /// What this kernel lacks for it.
    public static var lacks: [String] {
        (Landlock.version == 0 ? ["Landlock (Linux 5.13, in the list of the parameter lsm=)"] : [])
            + (cbaton_has_listeners() == 0
                ? ["seccomp filters with a listener (CONFIG_SECCOMP_FILTER, Linux 5.5)"] : [])
    }

    // MARK: Putting it on

    /// Puts it on this process, which has the main thread only, and a warden that waits for it (`Warden.start`).
    /// - Parameters:
    ///   - modules: those that are loaded.
    ///   - directories: where modules are found.
    ///   - isStrict: whether each part of it must be possible. Else the process gets what parts are.
    ///   - changeUser: what becomes another user, or nothing; the warden stays what it is.
    /// - Returns: why it is not whole; nil when it is.
    public func putOn(
        modules: [ModuleLoader.Candidate], directories: [String], isStrict: Bool,
        changeUser: () throws(VMMError) -> Void
    ) throws(VMMError) -> VMMError? {
        guard cbaton_is_alone() == 1 else {
            let error = VMMError(
                "the sandbox cannot be put on: the VMM has threads already, or /proc is not there",
                hint: "A module that starts threads when it is loaded cannot be in a sandbox.")
            if isStrict { throw error }
            HostAccess.isNoting = false
            try changeUser()
            return error
        }
        (HostAccess.socket, HostAccess.preparedSocket) = (HostAccess.preparedSocket, -1)
        var landlock: Landlock?
        var lack: VMMError?
        do throws(VMMError) { landlock = try Landlock() } catch {
            if isStrict { throw error }
            lack = error
        }
        tellWarden(landlock)
        if let allowed = landlock {
            allowSystem(allowed, modules.map(\.path), directories)
            // The warden would open these for it, of a newer module; one that is there need not ask.
            for path in modules.flatMap(\.needs.paths) {
                allowed.allow(path: path, [.read, .write, .list, .truncate, .deviceControl])
            }
            if let failure = allowed.failure {
                if isStrict { throw failure }
                (landlock, lack) = (nil, failure)
            }
        }
        HostAccess.isNoting = false
        try changeUser()
        do throws(VMMError) { try enter(landlock, modules) } catch {
            if isStrict { throw error }
            lack = lack ?? error
        }
        return lack
    }

    /// What the VM has and is to have again, which Landlock is told at the same time.
    private func tellWarden(_ landlock: Landlock?) {
        var allowances = HostAccess.Allowances()
        func allowFile(_ path: String, _ flags: Int32) { allowances.add(.allowFile, Array(path.utf8), flags: flags) }
        _ = FD.forEachOpen { fd, path in
            var status = stat()
            guard fstat(fd, &status) == 0 else { return }
            switch status.st_mode & S_IFMT {
            case S_IFREG, S_IFBLK, S_IFCHR, S_IFIFO:
                guard let path = path(), path.hasPrefix("/") else { return }
                let flags = fcntl(fd, F_GETFL) & O_ACCMODE
                landlock?.allow(fd, Sandbox.rights(flags))
                allowFile(path, flags)
            case S_IFSOCK:
                for address in Sandbox.addresses(of: fd, landlock) { allowances.add(.allowAddress, address) }
            default: break
            }
        }
        for path in options.paths {
            landlock?.allow(path: path, .everything)
            allowances.add(.allowDirectory, Array(path.utf8))
        }
        for (path, flags) in HostAccess.files where !path.hasPrefix("/proc/") {
            if !Sandbox.isDirectory(path) { landlock?.allow(path: path, Sandbox.rights(flags)) }
            allowFile(path, flags)
        }
        for address in HostAccess.addresses { allowances.add(.allowAddress, address) }
        for helper in HostAccess.helpers { allowances.add(.allowHelper, HostAccess.encode(helper)) }
        if let manager = HostAccess.manager { allowances.add(.allowManager, manager) }
        allowances.send()
        HostAccess.send(.seal, [])
    }

    private static func rights(_ flags: Int32) -> Landlock.Rights {
        flags == O_RDONLY ? .read : [.read, .write, .truncate, .deviceControl]
    }

    /// - Parameter landlock: nil where the kernel has none.
    private func enter(_ landlock: Landlock?, _ modules: [ModuleLoader.Candidate]) throws(VMMError) {
        var calls = SystemCallSet.ofRuntime
        var capabilities = Sandbox.capabilities
        for needs in modules.map(\.needs) {
            calls = calls.union(needs.systemCalls)
            capabilities |= needs.capabilities
        }
        // Not asked for either: a newer VMM would need them as this one does.
        var refused = SystemCallSet()
        if !options.allowsSpawning { refused = refused.union(.ofSpawning) }
        if !options.allowsResourceControl { refused = refused.union(.ofResourceControl) }
        if options.allowsObsolete { calls = calls.union(.obsolete) }
        if options.allowsPrivileges { calls = calls.union(.ofPrivileges) }
        let filter = SeccompFilter(
            allowing: calls, refusing: refused, otherwise: .ask, hasDatagrams: hasDatagrams)
        guard cbaton_no_new_privileges() == 0 else { throw .system("failed to set no_new_privs aborting") }
        try landlock?.enter()
        if !options.allowsPrivileges, cbaton_keep_capabilities(capabilities) != 0 {
            throw .system("cannot give up capabilities")
        }
        let listener = OwnedFD(adopting: try filter.install())
        guard HostAccess.send(.listener, [], fds: [listener.raw]) else {
            throw .system("the sandbox's warden does not answer")
        }
    }

    /// CAP_IPC_LOCK and CAP_SYS_NICE, for memory that is locked and threads' order of precedence.
    private static let capabilities: UInt64 = 1 << 14 | 1 << 23

    // MARK: What the VM has

    /// The socket that marks the VM's updates sends nothing.
    private var hasDatagrams: Bool {
        (FD.allOpen() ?? []).contains { fd in
            DescriptorKind.option(fd, SO_TYPE) == Int32(SOCK_DGRAM.rawValue) && !UpdateMark.isMark(fd)
        }
    }

    /// Where a socket is and whom it is connected to, as the warden has addresses. A TCP port that it listens on may be
    /// bound again.
    private static func addresses(of fd: Int32, _ landlock: Landlock?) -> [[UInt8]] {
        let addresses = [DescriptorKind.boundAddress(of: fd), DescriptorKind.peerAddress(of: fd)].compactMap { $0 }
            .filter { $0.count > 2 }
        for address in addresses {
            let family = address.withUnsafeBytes { $0.loadUnaligned(as: sa_family_t.self) }
            guard [sa_family_t(AF_INET), sa_family_t(AF_INET6)].contains(family),
                DescriptorKind.option(fd, SO_ACCEPTCONN) != 0
            else { continue }
            landlock?.allow(port: UInt16(address[2]) << 8 | UInt16(address[3]))
        }
        return addresses.map { $0.withUnsafeBytes(HostAccess.canonical) }
    }

    /// What any program needs to start, and a newer VMM is found in.
    private func allowSystem(_ landlock: Landlock, _ modules: [String], _ directories: [String]) {
        landlock.allow(path: "/", .execute)
        var wanted = ["/usr", "/lib", "/lib64", "/bin", "/sbin", "/proc", "/sys"]
        // On most systems they lead to what is below /usr.
        wanted.removeAll { path in FD.linkTarget(path)?.hasPrefix("usr/") == true }
        let areMerged = ["/lib", "/lib64"].filter { !wanted.contains($0) }
        if let own = FD.linkTarget("/proc/self/exe") { wanted.append(FD.directory(of: own)) }
        wanted += directories + Sandbox.libraries(modules)
        var seen: Set<String> = []
        for path in wanted where seen.insert(path).inserted {
            if path.hasPrefix("/usr/") || areMerged.contains(where: { path == $0 || path.hasPrefix($0 + "/") }) {
                continue
            }
            landlock.allow(path: path, [.read, .list])
        }
        for name in [
            "ld.so.cache", "ld.so.preload", "localtime", "nsswitch.conf", "passwd", "group", "hosts", "host.conf",
            "resolv.conf", "services", "gai.conf", "locale.alias",
        ] {
            landlock.allow(path: "/etc/\(name)", .read)
        }
        for name in ["null", "zero", "full"] { landlock.allow(path: "/dev/\(name)", [.read, .write]) }
        // To make terminals; those of others are files elsewhere.
        landlock.allow(path: "/dev/ptmx", [.read, .write, .deviceControl])
        for name in ["random", "urandom", "tty"] { landlock.allow(path: "/dev/\(name)", .read) }
    }

    /// Where libraries are that this process has mapped; only the file where others can make one beside it.
    private static func libraries(_ modules: [String]) -> Set<String> {
        var result: Set<String> = []
        var seen: Set<String> = []
        for path in mapped + modules {
            let directory = FD.directory(of: path)
            guard !path.hasPrefix("/usr/"), seen.insert(directory).inserted else { continue }
            var status = stat()
            let isOpen = stat(directory, &status) != 0 || status.st_mode & S_IWOTH != 0
            result.insert(isOpen ? path : directory)
            // Another file in it, then.
            if isOpen { seen.remove(directory) }
        }
        return result
    }

    /// The files of libraries. Those that were opened before they were mapped, as modules are, have no name here.
    private static var mapped: [String] {
        var names = [UnsafePointer<CChar>?](repeating: nil, count: cbaton_libraries(nil, 0))
        _ = cbaton_libraries(&names, names.count)
        return names.compactMap { $0.map { String(cString: $0) } }.filter {
            $0.hasPrefix("/") && !$0.hasPrefix("/proc/")
        }
    }

    private static func isDirectory(_ path: String) -> Bool {
        var status = stat()
        return stat(path, &status) == 0 && status.st_mode & S_IFMT == S_IFDIR
    }
}
