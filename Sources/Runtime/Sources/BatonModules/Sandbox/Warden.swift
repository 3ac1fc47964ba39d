import BatonBase
import BatonMachine
import CBaton
import Glibc

/// The process outside of a VM's sandbox that answers for it: small, with memory of its own, and not to be asked for
/// anything but what is here. It is made before the sandbox is put on, is told then what the VM may have, and takes no
/// more of that afterwards. It serves all VMMs that the VM will have, and ends after the last one.
///
/// Two kinds of questions come to it.
/// - *Requests* over its socket (`HostAccess`): to open a file again under a name that the VM had from the start, to
///   connect or bind a socket to such an address, to start a helper again.
/// - *System calls* that the filter does not know. One passes if a file that the calling program has mapped to run says
///   that it needs that call (`ImageNeeds`), and the file is to be trusted: as a module is (`ModuleTrust`), and not
///   one that the VM can write. So a newer VMM, or a newer module, can do what it was made for, and nothing else can.
public final class Warden {
    /// To the VMMs; -1 when none has the other end any more.
    private var socket: Int32
    /// Of the filter; -1 before it is there, and when no process has that any more.
    private var listener: Int32 = -1
    private var isSealed = false
    /// Files by their paths without links, and how they may be opened.
    private var files: [String: Int32] = [:]
    private var directories: [String] = []
    private var addresses: Set<[UInt8]> = []
    private var helpers: Set<[UInt8]> = []
    /// The service manager's address.
    private var manager: [UInt8]?
    /// Of calls that were refused, so that each is reported once.
    private var reported: Set<Int32> = []

    private init(_ socket: Int32) { self.socket = socket }

    /// Starts the warden of the VM that this process is about to become: a copy of the process, made while it has one
    /// thread and nothing of the VM. It waits to be told what the VM may have; without that it ends with the VMM.
    ///
    /// The copy shares no memory that anybody writes. It is made early, as that takes a third of a millisecond, and
    /// another executable ten times that.
    /// - Parameter isQuiet: whether what the warden says is for nobody, as the VMM goes to the background.
    public static func start(isQuiet: Bool) throws(VMMError) {
        var socket: Int32 = -1
        let child = cbaton_fork_warden(isQuiet ? 1 : 0, &socket)
        guard child >= 0 else { throw .system("cannot start the sandbox's warden") }
        guard child == 0 else { return HostAccess.preparedSocket = socket }
        HostAccess.isNoting = false
        Warden(socket).serve()
        // Nothing of the VMM's is tidied up here.
        _exit(0)
    }

    private func serve() {
        while socket >= 0 || listener >= 0 {
            var states = [
                pollfd(fd: socket, events: Int16(POLLIN), revents: 0),
                pollfd(fd: listener, events: Int16(POLLIN), revents: 0),
            ]
            // Guards of helpers are children.
            _ = cbaton_poll(&states, 2, 1_000_000_000)
            while waitpid(-1, nil, WNOHANG) > 0 {}
            if states[0].revents != 0, !hear() {
                close(socket)
                socket = -1
            }
            if states[1].revents & Int16(POLLIN) != 0 {
                decide()
            } else if states[1].revents != 0 {
                close(listener)
                listener = -1
            }
        }
    }

    // MARK: Requests

    /// - Returns: false at the end.
    private func hear() -> Bool {
        var message = [UInt8](repeating: 0, count: 12 + HostAccess.limit)
        var fds = [Int32](repeating: -1, count: Int(CBATON_MESSAGE_FDS))
        var fdCount: Int32 = 0
        let count = retryingInterrupts {
            cbaton_receive_fds(socket, &message, message.count, &fds, &fdCount, Int32(MSG_DONTWAIT))
        }
        guard count > 0 else { return count < 0 && isTransientFailure() }
        let received = Array(fds.prefix(Int(max(0, fdCount))))
        defer { for fd in received where fd != listener { close(fd) } }
        guard count >= 12 else { return true }
        let words = message.withUnsafeBytes { bytes in
            (0..<3).map { bytes.loadUnaligned(fromByteOffset: 4 * $0, as: UInt32.self) }
        }
        guard let request = HostAccess.Request(rawValue: words[0]) else {
            // Of a newer VMM.
            if let answer = received.first { reply(answer, ENOSYS) }
            return true
        }
        let payload = Array(message[12..<count])
        let flags = Int32(bitPattern: words[1])
        switch request {
        case .allow: if !isSealed { HostAccess.Allowances.forEach(in: payload, allow) }
        case .allowFile, .allowDirectory, .allowAddress, .allowHelper, .allowManager: break
        case .tellManager:
            if let answer = received.first { reply(answer, tellManager(payload, Array(received.dropFirst()))) }
        case .standIn:
            // It outlives every VMM, and ends by no signal to stop.
            if let answer = received.first { reply(answer, tellManager(Array("MAINPID=\(getpid())".utf8), [])) }
        case .seal: isSealed = true
        case .listener: if listener < 0, isSealed, let fd = received.first { listener = fd }
        case .open:
            guard let answer = received.first else { break }
            let (code, fd) = open(String(decoding: payload, as: UTF8.self), flags, mode_t(words[2]), for: answer)
            reply(answer, code, fd)
            if fd >= 0 { close(fd) }
        case .connect, .bind:
            guard received.count == 2 else { break }
            reply(received[0], use(payload, received[1], toBind: request == .bind))
        case .remove:
            guard let answer = received.first else { break }
            reply(answer, remove(String(decoding: payload, as: UTF8.self)))
        case .startHelper:
            guard let answer = received.first else { break }
            startHelper(payload, answer)
        }
        return true
    }

    /// A client that does not wait any more has lost its answer.
    private func reply(_ socket: Int32, _ code: Int32, _ fd: Int32 = -1) {
        var code = code
        _ = cbaton_send_fds(socket, &code, 4, [fd], fd >= 0 ? 1 : 0, Int32(MSG_DONTWAIT))
    }

    private func allow(_ request: HostAccess.Request, _ flags: Int32, _ payload: [UInt8]) {
        let text = String(decoding: payload, as: UTF8.self)
        switch request {
        case .allowFile:
            guard let path = Warden.resolved(text) else { return }
            let known = files[path]
            files[path] = known == nil || known == flags ? flags : O_RDWR
        case .allowDirectory: if let path = realpath(text, nil).map(Warden.taken) { directories.append(path) }
        case .allowAddress: addresses.insert(payload)
        case .allowManager: manager = payload
        case .allowHelper: helpers.insert(payload)
        default: break
        }
    }

    /// A path without links but for its last name, which is not followed anywhere.
    private static func resolved(_ path: String) -> String? {
        let name =
            path.utf8.lastIndex(of: UInt8(ascii: "/")).map { String(path[path.utf8.index(after: $0)...]) } ?? path
        guard path.hasPrefix("/"), !["", ".", ".."].contains(name), !path.utf8.contains(0),
            let parent = realpath(FD.directory(of: path), nil).map(taken)
        else { return nil }
        return parent == "/" ? "/\(name)" : "\(parent)/\(name)"
    }

    private static func taken(_ text: UnsafeMutablePointer<CChar>) -> String {
        defer { free(text) }
        return String(cString: text)
    }

    /// Of all flags of open(2) those that say how a file is used.
    private static let openFlags =
        O_ACCMODE | O_CREAT | O_EXCL | O_TRUNC | O_APPEND | O_NOCTTY | O_DIRECTORY | O_DSYNC
        | O_SYNC

    private func open(_ text: String, _ flags: Int32, _ mode: mode_t, for answer: Int32) -> (Int32, Int32) {
        guard let path = Warden.resolved(text), isAllowed(path, flags) || isNeeded(path, by: answer) else {
            return (EACCES, -1)
        }
        // Nothing is waited for, and what the VM itself may have put there is not followed.
        let fd = cbaton_make_nofollow(path, flags & Warden.openFlags | O_NONBLOCK | O_NOCTTY, mode & 0o777)
        guard fd >= 0 else { return (errno, -1) }
        if flags & O_NONBLOCK == 0 { try? FD.setNonBlocking(fd, false) }
        return (0, fd)
    }

    private func isAllowed(_ path: String, _ flags: Int32) -> Bool {
        guard let allowed = files[path] else { return false }
        let wanted = flags & O_ACCMODE
        return allowed == O_RDWR || wanted == allowed && (wanted != O_RDONLY || flags & (O_CREAT | O_TRUNC) == 0)
    }

    private func isBelow(_ path: String) -> Bool { directories.contains { path.hasPrefix($0 == "/" ? $0 : $0 + "/") } }

    private func remove(_ text: String) -> Int32 {
        guard let path = Warden.resolved(text), isRemovable(path) else { return EACCES }
        var status = stat()
        guard lstat(path, &status) == 0 else { return errno }
        guard [S_IFREG, S_IFSOCK].contains(status.st_mode & S_IFMT) else { return EACCES }
        return unlink(path) == 0 ? 0 : errno
    }

    /// What the VM writes, or the socket that it listens on.
    private func isRemovable(_ path: String) -> Bool {
        if let flags = files[path] { return flags != O_RDONLY }
        return unixPaths.contains(path)
    }

    private var unixPaths: Set<String> {
        Set(addresses.compactMap { Warden.unixPath($0).flatMap(Warden.resolved) })
    }

    /// Of a unix socket that has a file.
    private static func unixPath(_ address: [UInt8]) -> String? {
        guard address.count > 2, address.withUnsafeBytes({ $0.loadUnaligned(as: sa_family_t.self) }) == AF_UNIX,
            address[2] != 0
        else { return nil }
        return String(decoding: address[2...].prefix { $0 != 0 }, as: UTF8.self)
    }

    private func use(_ given: [UInt8], _ fd: Int32, toBind: Bool) -> Int32 {
        guard (2...MemoryLayout<sockaddr_storage>.size).contains(given.count) else { return EINVAL }
        let address = given.withUnsafeBytes(HostAccess.canonical)
        if addresses.contains(address) { return Warden.use(given, fd, toBind) }
        guard let path = Warden.unixPath(given).flatMap(Warden.resolved) else { return EPERM }
        if unixPaths.contains(path) { return Warden.use(given, fd, toBind) }
        guard isBelow(path) else { return EPERM }
        if toBind { return EACCES }
        // The very socket that was looked at.
        let place = cbaton_open_nofollow(path, O_PATH_ONLY)
        guard place >= 0 else { return errno }
        defer { close(place) }
        let family = withUnsafeBytes(of: sa_family_t(AF_UNIX)) { Array($0) }
        return Warden.use(family + Array("/proc/self/fd/\(place)".utf8) + [0], fd, toBind)
    }

    private static func use(_ address: [UInt8], _ fd: Int32, _ toBind: Bool) -> Int32 {
        var storage = sockaddr_storage()
        withUnsafeMutableBytes(of: &storage) { $0.copyBytes(from: address) }
        return withUnsafePointer(to: &storage) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { name in
                let length = socklen_t(address.count)
                // A socket that blocks would hold up everybody else.
                let flags = fcntl(fd, F_GETFL)
                guard toBind || flags & O_NONBLOCK != 0 else { return EINVAL }
                return (toBind ? Glibc.bind(fd, name, length) : Glibc.connect(fd, name, length)) == 0 ? 0 : errno
            }
        }
    }

    private func tellManager(_ text: [UInt8], _ fds: [Int32]) -> Int32 {
        guard let manager else { return EPERM }
        let fd = Glibc.socket(AF_UNIX, Int32(SOCK_DGRAM.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue), 0)
        guard fd >= 0 else { return errno }
        defer { close(fd) }
        let code = Warden.use(manager, fd, false)
        guard code == 0 else { return code }
        return cbaton_send_fds(fd, text, text.count, fds, fds.count, 0) == text.count ? 0 : errno
    }

    private func startHelper(_ payload: [UInt8], _ answer: Int32) {
        guard helpers.contains(payload) else { return reply(answer, EPERM) }
        let words = payload.split(separator: 0, omittingEmptySubsequences: false).dropLast().map {
            String(decoding: $0, as: UTF8.self)
        }
        let arguments = CStringArray(Array(words.dropFirst()))
        var pid: pid_t = 0
        let fd = withExtendedLifetime(arguments) { cbaton_start_helper(words[0], arguments.pointers, &pid) }
        reply(answer, fd < 0 ? -fd : 0, fd)
        if fd >= 0 { close(fd) }
    }

    // MARK: System calls

    private func decide() {
        var call = cbaton_call()
        guard cbaton_next_call(listener, &call) == 0 else { return }
        let name = cbaton_system_call_name(call.number).map { String(cString: $0) }
        let isNeeded = needs(of: call.task) { $0.systemCalls.contains(UInt32(bitPattern: call.number)) }
        // The task may have gone, and its number be another's.
        guard cbaton_is_waiting(listener, &call) != 0 else { return }
        if isNeeded {
            _ = cbaton_answer_call(listener, &call, 0)
            return
        }
        // What has no name here is newer than this, and who calls it knows what to do without it.
        _ = cbaton_answer_call(listener, &call, name == nil ? ENOSYS : EPERM)
        if reported.insert(call.number).inserted {
            Report.warning(
                "the sandbox has refused the system call \(name ?? "\(call.number)") to task \(call.task); "
                    + "this is said once")
        }
    }

    private func isNeeded(_ path: String, by socket: Int32) -> Bool {
        var pid: pid_t = 0
        var user: UInt32 = 0
        guard cbaton_peer(socket, &pid, &user) == 0, pid > 0 else { return false }
        return needs(of: pid) { needs in
            needs.paths.contains { $0.hasSuffix("/") ? path.hasPrefix($0) : path == $0 }
        }
    }

    /// Whether one of the files that a task has mapped to run says so, of those that are to be trusted.
    private func needs(of task: pid_t, _ says: (ImageNeeds) -> Bool) -> Bool {
        var seen: Set<String> = []
        for (path, inode) in MappedFile.executable(of: String(task)) {
            guard seen.insert(path).inserted, !isWritable(path),
                let fd = try? ModuleTrust.open(path)
            else { continue }
            var status = stat()
            guard fstat(fd.raw, &status) == 0, inode == UInt64(status.st_ino),
                let needs = ImageNeeds(fd: fd.raw), says(needs)
            else { continue }
            return true
        }
        return false
    }

    /// Whether the VM could have written the file.
    private func isWritable(_ path: String) -> Bool {
        isBelow(path) || files[path].map { $0 != O_RDONLY } == true
    }
}
