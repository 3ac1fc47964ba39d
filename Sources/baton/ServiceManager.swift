import BatonRuntime
import CBaton
import Glibc

/// Tells the service manager that started the VMM how it is, as sd_notify(3)
/// does: that the machine stands, that the VMM ends, and that another process
/// has become the main one, which happens when an update fails. In between it
/// gets a line about the guest's state (STATUS), and a sign of life from the
/// event loop as often as it wants one (WATCHDOG).
///
/// Its socket is in NOTIFY_SOCKET. That is taken out of the environment, so that
/// it reaches no child but a new VMM; and so is the watchdog's time.
enum ServiceManager {
    private static let variable = "NOTIFY_SOCKET"
    private static let watchdogVariable = "WATCHDOG_USEC"
    private static let storeVariable = "FDSTORE"
    private nonisolated(unsafe) static var path: String?
    /// Nanoseconds within which the manager wants a sign of life; nil when it wants none.
    private nonisolated(unsafe) static var watchdog: Int64?

    /// How many descriptors it keeps for this service.
    private nonisolated(unsafe) static var storeSize = 0
    /// Those that it has given to this process.
    private nonisolated(unsafe) static var given: [(name: String, fd: Int32)] = []

    private nonisolated(unsafe) static var vm: VirtualMachine?
    /// How the last update ended; empty before there was one.
    private nonisolated(unsafe) static var updateNote = ""
    private nonisolated(unsafe) static var shownStatus = ""
    private nonisolated(unsafe) static var statusIsDue = false

    /// Takes the socket's address, and what else the manager has said, from the environment.
    static func find() {
        path = getenv(variable).map { String(cString: $0) }
        if var address = path.flatMap(address) {
            HostAccess.manager = withUnsafeBytes(of: &address.name) { Array($0.prefix(Int(address.length))) }
        }
        let limit = getenv(watchdogVariable).flatMap { Int64(String(cString: $0)) }
        // It may be the watchdog of a process before this one (sd_watchdog_enabled(3)).
        let isOurs = getenv("WATCHDOG_PID").map { String(cString: $0) == String(getpid()) } ?? true
        if path != nil, let limit, (1...Int64.max / 1000).contains(limit), isOurs { watchdog = limit * 1000 }
        for name in [variable, watchdogVariable, "WATCHDOG_PID"] { unsetenv(name) }
        findGiven()
    }

    /// Takes part in the updates of the VM.
    static func register(_ vm: VirtualMachine, _ cpr: CprController) {
        guard let path else { return }
        self.vm = vm
        cpr.successorEnvironment.append((variable, path))
        if let watchdog { cpr.successorEnvironment.append((watchdogVariable, String(watchdog / 1000))) }
        if storeSize > 0 { cpr.successorEnvironment.append((storeVariable, String(storeSize))) }
        if !cpr.isTrial, address(path) != nil { CprController.onMainProcess(Observer()) }
        vm.onRunStateChange { _ in statusChanged() }
        vm.onEvent { name, data in noteUpdate(name, data) }
        if cpr.isTrial { return }
        vm.loop.later { keepAlive() }
    }

    static func machineStands() {
        send("READY=1")
        showStatus()
    }

    /// From the event loop: as often as the manager recommends, which is half of its limit. Over an update the old VMM
    /// goes on with it until the new one does.
    private static func keepAlive() {
        guard let watchdog, let vm else { return }
        send("WATCHDOG=1", Int32(MSG_DONTWAIT))
        vm.loop.schedule(at: EventLoop.now + watchdog / 2) { keepAlive() }
    }

    // MARK: Status

    private static func noteUpdate(_ name: String, _ data: JSONObject) {
        switch name {
        case "CPR_UPDATED":
            let pause = data["pause-us"]?.intValue ?? 0
            updateNote = "; updated to \(BatonVersion.text), the guest paused for \(pause) us"
        case "CPR_ROLLED_BACK":
            updateNote = "; \(data["reason"]?.stringValue ?? "an update was taken back")"
        default: return
        }
        statusChanged()
    }

    /// Says so when the loop comes round: what changes the state may be what the guest waits for.
    private static func statusChanged() {
        guard path != nil, !statusIsDue, let vm else { return }
        statusIsDue = true
        vm.loop.later {
            statusIsDue = false
            showStatus()
        }
    }

    /// A state in which the guest is on its way between two VMMs is not worth a word, and time is short then.
    static func showStatus() {
        guard path != nil, let vm, ![.saveVM, .restoreVM, .finishMigrate].contains(vm.runState) else { return }
        let status = TerminalText.escaped(vm.runState.rawValue + updateNote)
        guard status != shownStatus else { return }
        shownStatus = status
        send("STATUS=\(status)", Int32(MSG_DONTWAIT))
    }

    static func ending() { send("STOPPING=1") }

    // MARK: Its store of descriptors

    /// nil when there is no manager, or it keeps none for this service (`FileDescriptorStoreMax=`).
    static var descriptorStore: (any DescriptorStore)? { path != nil && storeSize > 0 ? Store() : nil }

    /// What systemd.service(5) has as `FileDescriptorStorePreserve=`: its descriptors come back as those of sockets do
    /// (sd_listen_fds(3)), in the next start of the service.
    private final class Store: DescriptorStore {
        func store(_ name: String, _ fd: Int32) -> Bool {
            ServiceManager.send("FDSTORE=1\nFDNAME=\(name)", descriptor: fd)
        }
        func remove(_ name: String) {
            for (_, fd) in ServiceManager.given.filter({ $0.name == name }) { close(fd) }
            ServiceManager.given.removeAll { $0.name == name }
            ServiceManager.send("FDSTOREREMOVE=1\nFDNAME=\(name)")
        }
        func find(_ name: String) -> [Int32] { ServiceManager.given.filter { $0.name == name }.map(\.fd) }
    }

    /// Takes note of the descriptors that come from the manager, which nobody else is to inherit.
    private static func findGiven() {
        storeSize = getenv(storeVariable).flatMap { Int(String(cString: $0)) } ?? 0
        let isOurs = getenv("LISTEN_PID").map { String(cString: $0) == String(getpid()) } ?? false
        let count = getenv("LISTEN_FDS").flatMap { Int32(String(cString: $0)) } ?? 0
        let names = getenv("LISTEN_FDNAMES").map { String(cString: $0) } ?? ""
        for name in [storeVariable, "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"] { unsetenv(name) }
        guard isOurs, (1...Int32.max - 3).contains(count) else { return }
        let all = names.split(separator: ":", omittingEmptySubsequences: false).prefix(Int(count))
        for (index, name) in all.enumerated() {
            let fd = 3 + Int32(index)
            if fcntl(fd, F_SETFD, FD_CLOEXEC) == 0 { given.append((String(name), fd)) }
        }
    }

    // MARK: Its main process

    /// Of a service whose main process ends, systemd ends all others. It reads what it was sent before it looks which
    /// processes have ended (the priorities of its event sources, manager.c), so that what is in its
    /// queue in time counts.
    private final class Observer: MainProcessObserver {
        /// Connected to the manager while this process updates; -1 in a sandbox, in which it would lead to others too.
        private var line: Int32 = -1

        func prepare() -> Int32 {
            if line >= 0 { close(line) }
            line = HostAccess.socket < 0 ? connected() : -1
            return HostAccess.socket < 0 ? -1 : HostAccess.standIn()
        }

        func isStandIn(_ answer: Int32) -> Bool { HostAccess.hasStoodIn(answer) }

        func tell(_ pid: pid_t) -> Bool {
            line >= 0 && ServiceManager.send("MAINPID=\(pid)", Int32(MSG_DONTWAIT), over: line)
        }

        func announce(_ pid: pid_t) -> Bool { send("MAINPID=\(pid)", Int32(MSG_DONTWAIT), -1) }

        func announceWithReceipt(_ pid: pid_t) -> Int32 {
            var ends: [Int32] = [-1, -1]
            guard pipe(&ends) == 0 else {
                _ = announce(pid)
                return -1
            }
            for fd in ends { _ = fcntl(fd, F_SETFD, FD_CLOEXEC) }
            defer { close(ends[1]) }
            // The manager closes the other end when it has come so far, and so does a warden that cannot reach it.
            if send("MAINPID=\(pid)", 0, -1), send("BARRIER=1", 0, ends[1]) { return ends[0] }
            close(ends[0])
            return -1
        }

        /// The warden's answer is not waited for: its messages go in order, and the guest may stand still.
        private func send(_ text: String, _ flags: Int32, _ fd: Int32) -> Bool {
            HostAccess.socket >= 0
                ? HostAccess.tellManagerSoon(text, fd)
                : ServiceManager.send(text, flags, descriptor: fd >= 0 ? fd : nil)
        }
    }

    @discardableResult
    private static func send(_ text: String, _ flags: Int32 = 0, descriptor: Int32? = nil) -> Bool {
        if HostAccess.socket >= 0 { return HostAccess.tellManager(text, descriptor ?? -1) }
        let fd = connected()
        guard fd >= 0 else { return false }
        defer { close(fd) }
        return send(text, flags, descriptor: descriptor, over: fd)
    }

    private static func send(_ text: String, _ flags: Int32, descriptor: Int32? = nil, over fd: Int32) -> Bool {
        let bytes = Array(text.utf8)
        let descriptors = descriptor.map { [$0] } ?? []
        return cbaton_send_fds(fd, bytes, bytes.count, descriptors, descriptors.count, flags) == bytes.count
    }

    /// - Returns: a socket to the manager, which is the caller's; -1 when it cannot be reached.
    private static func connected() -> Int32 {
        guard let path, var address = address(path) else { return -1 }
        let fd = socket(AF_UNIX, Int32(SOCK_DGRAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        guard fd >= 0 else { return -1 }
        // It may be busy, and must not hold the guest up.
        var limit = timeval(tv_sec: 0, tv_usec: 200_000)
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
        let isConnected = withUnsafePointer(to: &address.name) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { connect(fd, $0, address.length) == 0 }
        }
        guard isConnected else {
            close(fd)
            return -1
        }
        return fd
    }

    /// - Returns: nil when it is no address of a unix socket, such as `vsock:2:1`.
    private static func address(_ path: String) -> (name: sockaddr_un, length: socklen_t)? {
        var bytes = Array(path.utf8)
        var name = sockaddr_un()
        guard let first = bytes.first, bytes.count < MemoryLayout.size(ofValue: name.sun_path) else { return nil }
        switch first {
        case UInt8(ascii: "/"): bytes.append(0)
        // The kernel's own names begin with a zero, and have their length.
        case UInt8(ascii: "@"): bytes[0] = 0
        default: return nil
        }
        name.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &name.sun_path) { $0.copyBytes(from: bytes) }
        let start = MemoryLayout<sockaddr_un>.offset(of: \.sun_path) ?? 2
        return (name, socklen_t(start + bytes.count))
    }
}
