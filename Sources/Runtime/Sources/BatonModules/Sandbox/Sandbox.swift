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

    /// What this kernel lacks for it; nil when nothing.
    public static var lack: String? {
        if Landlock.version == 0 { return "Landlock (Linux 5.13, in the list of the parameter lsm=)" }
        if cbaton_has_listeners() == 0 { return "seccomp filters with a listener (CONFIG_SECCOMP_FILTER, Linux 5.5)" }
        return nil
    }

    // MARK: Putting it on

    /// Puts it on this process, which has the main thread only.
    /// - Parameters:
    ///   - modules: the files of those that are loaded.
    ///   - directories: where modules are found.
    ///   - isQuiet: whether what the warden says is for nobody, as the process goes to the background.
    ///   - changeUser: what becomes another user, or nothing; the warden stays what it is.
    public func putOn(
        modules: [String], directories: [String], isQuiet: Bool, changeUser: () throws(VMMError) -> Void
    ) throws(VMMError) {
        guard cbaton_is_alone() == 1 else {
            throw VMMError(
                "the sandbox cannot be put on: the VMM has threads already, or /proc is not there",
                hint: "A module that starts threads when it is loaded cannot be in a sandbox.")
        }
        let landlock = try Landlock()
        try startWarden(isQuiet)
        try allowOpenFiles(landlock)
        allowSystem(landlock, directories)
        for path in options.paths {
            landlock.allow(path: path, .everything)
            HostAccess.send(.allowDirectory, Array(path.utf8))
        }
        for (path, flags) in HostAccess.files {
            let rights: Landlock.Rights = flags == O_RDONLY ? .read : [.read, .write, .truncate, .deviceControl]
            if !Sandbox.isDirectory(path) { landlock.allow(path: path, rights) }
            HostAccess.send(.allowFile, Array(path.utf8), flags: flags)
        }
        for address in HostAccess.addresses { HostAccess.send(.allowAddress, address) }
        for helper in HostAccess.helpers { HostAccess.send(.allowHelper, HostAccess.encode(helper)) }
        if let manager = HostAccess.manager { HostAccess.send(.allowManager, manager) }
        HostAccess.send(.seal, [])
        HostAccess.isNoting = false
        try changeUser()
        try enter(landlock, modules)
    }

    private func enter(_ landlock: Landlock, _ modules: [String]) throws(VMMError) {
        var calls = SystemCallSet.ofRuntime
        var capabilities = Sandbox.capabilities
        for module in modules {
            let fd = try ModuleTrust.open(module)
            guard let needs = ImageNeeds(fd: fd.raw) else { continue }
            calls = calls.union(SystemCallSet(numbers: needs.systemCalls))
            capabilities |= needs.capabilities
        }
        // Not asked for either: a newer VMM would need them as this one does.
        var refused = SystemCallSet(numbers: [])
        if !options.allowsSpawning { refused = refused.union(.ofSpawning) }
        if !options.allowsResourceControl { refused = refused.union(.ofResourceControl) }
        if options.allowsObsolete { calls = calls.union(.obsolete) }
        if options.allowsPrivileges { calls = calls.union(.ofPrivileges) }
        let filter = SeccompFilter(
            allowing: calls, refusing: refused, otherwise: .ask, hasDatagrams: hasDatagrams)
        guard cbaton_no_new_privileges() == 0 else { throw .system("failed to set no_new_privs aborting") }
        try landlock.enter()
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

    private func startWarden(_ isQuiet: Bool) throws(VMMError) {
        var ends: [Int32] = [-1, -1]
        guard socketpair(AF_UNIX, Int32(SOCK_SEQPACKET.rawValue | SOCK_CLOEXEC.rawValue), 0, &ends) == 0 else {
            throw .system("cannot make a socket to the sandbox's warden")
        }
        defer { close(ends[1]) }
        let null = isQuiet ? Glibc.open("/dev/null", O_WRONLY | O_CLOEXEC) : -1
        defer { if null >= 0 { close(null) } }
        let words = CStringArray(["/proc/self/exe", Warden.option, String(ends[1])])
        var pid: pid_t = 0
        let code = withExtendedLifetime(words) {
            cbaton_spawn(words.pointers, [ends[1]], 1, null >= 0 ? null : 2, &pid)
        }
        guard code == 0 else {
            close(ends[0])
            throw .system("cannot start the sandbox's warden", errno: code)
        }
        HostAccess.socket = ends[0]
    }

    // MARK: What the VM has

    /// The socket that marks the VM's updates sends nothing.
    private var hasDatagrams: Bool {
        (FD.allOpen() ?? []).contains { fd in
            DescriptorKind.option(fd, SO_TYPE) == Int32(SOCK_DGRAM.rawValue) && !UpdateMark.isMark(fd)
        }
    }

    /// What is open may be opened again.
    private func allowOpenFiles(_ landlock: Landlock) throws(VMMError) {
        for fd in FD.allOpen() ?? [] {
            var status = stat()
            guard fstat(fd, &status) == 0 else { continue }
            switch status.st_mode & S_IFMT {
            case S_IFREG, S_IFBLK, S_IFCHR, S_IFIFO:
                let flags = fcntl(fd, F_GETFL) & O_ACCMODE
                guard let path = FD.path(fd), path.hasPrefix("/") else { continue }
                landlock.allow(fd, flags == O_RDONLY ? .read : [.read, .write, .truncate, .deviceControl])
                HostAccess.send(.allowFile, Array(path.utf8), flags: flags)
            case S_IFSOCK: allowSocket(fd, landlock)
            default: break
            }
        }
    }

    private func allowSocket(_ fd: Int32, _ landlock: Landlock) {
        for address in [DescriptorKind.boundAddress(of: fd), DescriptorKind.peerAddress(of: fd)].compactMap({ $0 })
        where address.count > 2 {
            HostAccess.send(.allowAddress, address.withUnsafeBytes(HostAccess.canonical))
            let family = address.withUnsafeBytes { $0.loadUnaligned(as: sa_family_t.self) }
            guard DescriptorKind.option(fd, SO_ACCEPTCONN) != 0,
                [sa_family_t(AF_INET), sa_family_t(AF_INET6)].contains(family)
            else { continue }
            landlock.allow(port: UInt16(address[2]) << 8 | UInt16(address[3]))
        }
    }

    /// What any program needs to start, and a newer VMM is found in.
    private func allowSystem(_ landlock: Landlock, _ directories: [String]) {
        landlock.allow(path: "/", .execute)
        let own =
            (realpath("/proc/self/exe", nil).map { text -> String in
                defer { free(text) }
                return FD.directory(of: String(cString: text))
            }).map { [$0] } ?? []
        for path in ["/usr", "/lib", "/lib64", "/bin", "/sbin", "/proc", "/sys"] + own + directories + Sandbox.libraries
        {
            landlock.allow(path: path, [.read, .list])
        }
        for name in [
            "ld.so.cache", "ld.so.preload", "localtime", "nsswitch.conf", "passwd", "group", "hosts", "host.conf",
            "resolv.conf", "services", "gai.conf", "locale.alias",
        ] {
            landlock.allow(path: "/etc/\(name)", .read)
        }
        for name in ["null", "zero", "full"] { landlock.allow(path: "/dev/\(name)", [.read, .write]) }
        for name in ["random", "urandom", "tty"] { landlock.allow(path: "/dev/\(name)", .read) }
    }

    /// Where libraries are that this process has mapped; only the file where others can make one beside it.
    private static var libraries: [String] {
        var result: Set<String> = []
        for (path, _) in MappedFile.executable(of: "self") {
            var status = stat()
            let directory = FD.directory(of: path)
            let isOpen = stat(directory, &status) != 0 || status.st_mode & S_IWOTH != 0
            result.insert(isOpen ? path : directory)
        }
        return Array(result)
    }

    private static func isDirectory(_ path: String) -> Bool {
        var status = stat()
        return stat(path, &status) == 0 && status.st_mode & S_IFMT == S_IFDIR
    }
}
