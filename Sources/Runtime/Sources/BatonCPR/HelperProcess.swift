import BatonBase
import BatonMachine
import CBaton
import Glibc

/// A program that the VMM starts for one of its back ends, such as a storage daemon: the *helper*.
///
/// The helper serves a unix socket in a directory of its own, which the VMM makes. Between the two is a guard
/// (`helper_guard.c`), a small process that holds one end of a socket. The other end is the VMM's and goes from VMM to
/// VMM like any preserved descriptor: over an update the helper is neither told nor touched, and a rollback finds it as it
/// was. When the last copy of that end is closed, which even SIGKILL of the VMM does, the guard ends the helper.
///
/// A helper that dies is started again, after a delay that grows, until it has died too often in a row. Its clients
/// connect again by themselves (`reconnect-ms`). What it writes to its standard error becomes lines of the VMM's log. A
/// trial neither starts nor ends a helper.
///
/// With the VM lock held. Nothing here waits for a helper, except the start of the VM and its end.
public final class HelperProcess {
    /// What a helper is made of.
    public struct Program {
        /// Searched in PATH.
        public var name: String
        /// What it is for, as messages show it: `drive 'hd'`.
        public var purpose: String
        /// Its arguments for a directory. The program writes its PID to the file `pid` there when it serves.
        public var arguments: (_ directory: String) -> [String]
        /// What to do when there is no such program.
        public var remedy: String
        /// The sandbox that its guard puts it in; nil for one that makes its own.
        public var sandbox: Sandbox?
        /// What lines begin with that it writes without need.
        public var omitted: [String] = []
        /// What its errors begin with and nobody wants to read: its name, an argument that was made here.
        public var errorPrefixes: [String] = []

        public init(
            name: String, purpose: String, remedy: String, arguments: @escaping (_ directory: String) -> [String]
        ) {
            (self.name, self.purpose, self.remedy, self.arguments) = (name, purpose, remedy, arguments)
        }
    }

    /// What a program may do that has no sandbox of its own: read what its user can, and write in its directory and
    /// (`helper_guard.c`):
    public enum Sandbox {
        case writes([String])
        /// An image that names others which are written too.
        case writesAnything

        var words: [String] {
            switch self {
            case .writes(let files): [CBATON_HELPER_CONFINED] + files.map { CBATON_HELPER_WRITES + $0 }
            case .writesAnything: [CBATON_HELPER_CONFINED, CBATON_HELPER_WRITES_ANYTHING]
            }
        }
    }

    /// Nanoseconds.
    enum Limit {
        /// From the start of a helper to its readiness, at the start of the VM.
        static let start: Int64 = 10_000_000_000
        /// For all helpers, at the end of the VM.
        static let end: Int64 = 10_000_000_000
        /// One that lived longer than this has not failed in a row.
        static let good: Int64 = 60_000_000_000
        static let firstDelay: Int64 = 100_000_000
        static let lastDelay: Int64 = 10_000_000_000
    }
    /// How often in a row it may die.
    static let mostFailures: UInt64 = 10
    /// Lines of a helper that failed to start which its error shows.
    private static let shownLines = 4

    /// Unique among the helpers of the VM.
    public let id: String
    /// The helper's own, for the same user only. In a trial of a VMM that has a helper more than the old one: empty.
    public internal(set) var directory = ""
    /// Where it serves.
    public var socketPath: String { "\(directory)/\(CBATON_HELPER_SOCKET)" }

    let program: Program
    let loop: EventLoop
    unowned let vm: VirtualMachine
    /// To the guard; -1 when there is none. Owned.
    var socket: Int32 = -1
    var serial = PreservedFDs.newSerial()
    var guardPID: pid_t = 0
    /// The helper's; 0 when it is not known.
    public internal(set) var pid: pid_t = 0
    var failures: UInt64 = 0
    var startedAt: Int64 = 0
    private var timer: EventLoop.Timer?
    /// The guest is this process' own: until then the guard is the old VMM's to listen to.
    var isCommitted: Bool
    private var isEnding = false

    var part: String { "helper/\(id)" }
    /// What the names of its descriptors begin with.
    var fdPrefix: String { "\(part)/" }
    var fdName: String { "\(fdPrefix)guard" }

    /// Starts a helper and waits until it serves; in a process that takes over a guest, goes on with the one that runs.
    /// - Parameter prepare: makes what the helper needs in its new directory.
    /// - Throws: what the helper said when it does not serve. Nothing of it is left then.
    public init(
        _ id: String, _ program: Program, vm: VirtualMachine,
        prepare: (_ directory: String) throws(VMMError) -> Void = { _ in }
    ) throws(VMMError) {
        (self.id, self.program, self.vm, loop) = (id, program, vm, vm.loop)
        isCommitted = vm.handover?.awaitsLoad != true
        if let state = try vm.handover?.inheritedPart(part) {
            try inherit(state)
        } else if vm.handover?.isTrial != true {
            directory = try HelperProcess.makeDirectory()
            do throws(VMMError) {
                try prepare(directory)
                try start()
                try awaitReadiness()
            } catch {
                end()
                awaitEnd(until: EventLoop.now + Limit.end)
                vm.cpr?.childEnds(guardPID)
                // The guard has, unless the helper had ended by itself.
                HelperProcess.remove(directory)
                throw error
            }
            try listen()
        }
        vm.parts(HelperProcesses.self).inOrder.append(self)
        takePart()
    }

    deinit { forget() }

    // MARK: Start and end

    /// As QEMU makes temporary files: in TMPDIR, else in /var/tmp, as an overlay of a disk may become large.
    private static func makeDirectory() throws(VMMError) -> String {
        var parent = getenv("TMPDIR").map { String(cString: $0) } ?? ""
        // The address of a socket in it has 107 bytes.
        if !parent.hasPrefix("/") || parent.utf8.count > 80 { parent = "/var/tmp" }
        var template = Array("\(parent)/baton-XXXXXX".utf8CString)
        guard mkdtemp(&template) != nil else {
            throw .system("cannot make a directory in '\(parent)'", hint: "Say with TMPDIR where there is room.")
        }
        return String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    private static func remove(_ path: String) {
        guard !path.isEmpty, let directory = opendir(path) else { return }
        while let entry = readdir(directory) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) {
                $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            unlinkat(dirfd(directory), name, 0)
        }
        closedir(directory)
        rmdir(path)
    }

    private func start() throws(VMMError) {
        let words = (program.sandbox?.words ?? []) + [name] + program.arguments(directory)
        HostAccess.note(helper: [directory] + words)
        let fd = HelperProcess.startGuard(directory, words, &guardPID)
        guard fd >= 0 else {
            throw .system("\(program.purpose): cannot start '\(name)'", errno: -fd)
        }
        (socket, serial, startedAt, pid) = (fd, PreservedFDs.newSerial(), EventLoop.now, 0)
    }

    /// - Parameter pid: the guard's; 0 when that is a child of the warden's.
    /// - Returns: the socket to it, or what is less than 0 by an errno value.
    private static func startGuard(_ directory: String, _ words: [String], _ pid: inout pid_t) -> Int32 {
        if HostAccess.socket >= 0 {
            let fd = HostAccess.startHelper([directory] + words)
            let code = errno
            pid = 0
            guard fd >= 0, fcntl(fd, F_SETFL, O_NONBLOCK) == 0 else { return -code }
            return fd
        }
        let arguments = CStringArray(words)
        return withExtendedLifetime(arguments) { cbaton_start_helper(directory, arguments.pointers, &pid) }
    }

    var name: String { program.name }

    private func awaitReadiness() throws(VMMError) {
        var lines: [String] = []
        let deadline = EventLoop.now + Limit.start
        while let place = FD.awaitInput(anyOf: [socket, vm.signalFD], until: deadline) {
            guard place == 0 else {
                // Whoever ends the VM need not wait for its helper.
                vm.takeSignals()
                guard vm.isEnding else { continue }
                throw VMMError("\(program.purpose): the VMM was told to end before '\(name)' was ready")
            }
            switch receive() {
            case .ready: return lines.forEach { Log.helper(name, $0) }
            case .says(let line): if says(line) { lines.append(line) }
            case .ended(let status): throw startFailure(status, lines)
            case .started, nil: break
            }
        }
        throw VMMError("\(program.purpose): '\(name)' is not ready after \(Limit.start / 1_000_000_000) s")
    }

    private func says(_ line: String) -> Bool {
        !line.isEmpty && !program.omitted.contains { line.hasPrefix($0) }
    }

    private func startFailure(_ status: Int32?, _ lines: [String]) -> VMMError {
        let isMissing = status == 127 << 8
        let text = lines.suffix(HelperProcess.shownLines).map { line in
            program.errorPrefixes.reduce(line) { $0.hasPrefix($1) ? String($0.dropFirst($1.count)) : $0 }
        }.joined(separator: "; ")
        return VMMError(
            "\(program.purpose): \(text.isEmpty ? "'\(name)' \(Self.describe(status))" : text)",
            hint: isMissing ? program.remedy : nil)
    }

    private static func describe(_ status: Int32?) -> String {
        guard let status else { return "was lost" }
        let end = WaitStatus(raw: status)
        return "\(end.isSignal ? "was ended" : "ended") \(end.text)"
    }

    /// Asks the guard to end it.
    func end() {
        isEnding = true
        timer?.cancel()
        var message = CChar(CBATON_HELPER_END)
        if socket >= 0 { _ = send(socket, &message, 1, Int32(MSG_DONTWAIT | MSG_NOSIGNAL)) }
    }

    func forget() {
        timer?.cancel()
        guard socket >= 0 else { return }
        loop.unwatch(socket)
        close(socket)
        socket = -1
    }

    // MARK: What the guard says

    enum News {
        case started(pid_t)
        case ready
        case says(String)
        /// With its wait status; nil when the guard has gone too.
        case ended(Int32?)
    }

    /// - Returns: nil when there is nothing now.
    func receive() -> News? {
        var bytes = [UInt8](repeating: 0, count: 1 + Int(CBATON_HELPER_LINE))
        let count = retryingInterrupts { recv(socket, &bytes, bytes.count, Int32(MSG_DONTWAIT)) }
        guard count > 0 else { return count < 0 && isTransientFailure() ? nil : .ended(nil) }
        let payload = bytes[1..<count]
        var number: Int32 { payload.prefix(4).reversed().reduce(0) { $0 << 8 | Int32($1) } }
        switch Int32(bytes[0]) {
        case CBATON_HELPER_STARTED: return .started(number)
        case CBATON_HELPER_READY: return .ready
        case CBATON_HELPER_ENDED: return .ended(number)
        default: return .says(String(decoding: payload, as: UTF8.self))
        }
    }

    func listen() throws(VMMError) {
        guard isCommitted, socket >= 0 else { return }
        try loop.watch(socket, .readable) { [unowned self] _ in hear() }
    }

    private func hear() {
        while socket >= 0, let news = receive() {
            switch news {
            case .started(let pid): self.pid = pid
            case .ready: break
            case .says(let line): if says(line) { Log.helper(name, line) }
            case .ended(let status): ended(status)
            }
        }
    }

    private func ended(_ status: Int32?) {
        forget()
        vm.cpr?.childEnds(guardPID)
        (guardPID, pid) = (0, 0)
        guard !isEnding, !vm.isEnding else { return }
        fail("'\(name)' \(Self.describe(status))")
    }

    private func fail(_ reason: String) {
        if EventLoop.now - startedAt > Limit.good { failures = 0 }
        failures += 1
        guard failures <= HelperProcess.mostFailures else {
            return Report.warning(
                "\(program.purpose): \(reason), for the \(failures)th time in a row: it is not started again")
        }
        let delay = min(Limit.firstDelay << (failures - 1), Limit.lastDelay)
        Report.warning("\(program.purpose): \(reason); it is started again in \(delay / 1_000_000) ms")
        startLater(delay)
    }

    func startLater(_ delay: Int64) {
        timer = loop.schedule(at: EventLoop.now + delay) { [weak self] in self?.startAgain() }
    }

    private func startAgain() {
        guard socket < 0, !isEnding, !vm.isEnding else { return }
        do throws(VMMError) {
            try start()
            try listen()
        } catch {
            fail(error.message)
        }
    }
}
