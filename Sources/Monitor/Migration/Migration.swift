import BatonRuntime
import Glibc

/// QEMU's vocabulary for updates: `migrate` in the modes `cpr-exec` and
/// `cpr-reboot`, and `-incoming`, on the same machinery as `cpr-save`,
/// `cpr-exec` and `cpr-load`.
///
/// As in QEMU, `migrate` is answered before it is carried out, and what became
/// of it is in `query-migrate`. Unlike there, a new VMM that fails leads back
/// to this one, with the guest running and the status `failed`.
public final class Migration {
    enum Status: String, CaseIterable {
        case none, setup, cancelling, cancelled, active, device, completed, failed
    }

    unowned let cpr: CprController
    var vm: VirtualMachine { cpr.vm }

    // MARK: Parameters and capabilities

    enum Mode: String, CaseIterable {
        case normal
        case reboot = "cpr-reboot"
        case exec = "cpr-exec"

        /// The mode module that does it.
        var module: String? {
            switch self {
            case .normal: nil
            case .reboot: "reboot"
            case .exec: "restart"
            }
        }
    }
    var mode = Mode.normal
    var execCommand: [String] = []
    /// Limits of a live migration, which mean nothing to the modes here: kept
    /// for scripts that set them.
    var maxBandwidth: Int64 = 128 << 20
    var downtimeLimit: Int64 = 300
    /// Whether MIGRATION events are sent.
    var events = false
    /// Memory in shared files stays in place in any case.
    var ignoreShared = false

    // MARK: State

    private(set) var status = Status.none
    private(set) var errorText: String?
    /// CLOCK_MONOTONIC when `migrate` was asked for and when it was done, and
    /// the bytes that were written.
    private(set) var started: Int64 = 0
    private(set) var finished: Int64 = 0
    private(set) var transferred: UInt64 = 0
    /// Whether the status is that of an incoming state.
    private(set) var isIncoming = false

    public init(cpr: CprController) { self.cpr = cpr }

    func change(to status: Status, _ error: VMMError? = nil) {
        self.status = status
        errorText = error?.message
        if events { vm.emit("MIGRATION", ["status": .string(status.rawValue)]) }
    }

    // MARK: Outgoing

    /// Checks what can be checked, and has the update begin when the command
    /// has been answered.
    func migrate(to address: MigrationAddress, resume: Bool) throws(VMMError) {
        if resume { throw VMMError("Cannot resume if there is no paused migration") }
        switch vm.runState {
        case .inmigrate: throw VMMError("Guest is waiting for an incoming migration")
        case .postmigrate: throw VMMError("Can't migrate the vm that was paused due to previous migration")
        default: break
        }
        guard status != .setup, vm.runState != .saveVM else {
            throw VMMError("There's a migration process in progress")
        }
        guard let module = mode.module else {
            throw VMMError(
                "migration mode 'normal' is not supported", hint: "Set the parameter 'mode' to cpr-exec or cpr-reboot.")
        }
        if mode == .exec && execCommand.isEmpty { throw VMMError("cpr-exec mode requires setting cpr-exec-command") }
        if let blocker = cpr.blockers(try cpr.requireMode(module)).first { throw blocker }
        // As QEMU opens its file: an error here is the command's.
        try WholeFile.check(address.path)
        isIncoming = false
        started = EventLoop.now
        transferred = 0
        change(to: .setup)
        vm.loop.later { [weak self] in self?.carryOut(address.path, module) }
    }

    private func carryOut(_ path: String, _ module: String) {
        guard status == .setup else { return }
        do throws(VMMError) {
            change(to: .active)
            try cpr.save(to: path, mode: module)
            var file = stat()
            if stat(path, &file) == 0 { transferred = UInt64(file.st_blocks) * 512 }
            change(to: .device)
            finished = EventLoop.now
            change(to: .completed)
            if mode == .exec {
                // As QEMU's: nobody's session with a monitor goes on. The
                // connections end when the new process stands.
                cpr.endsMonitorSessions = true
                defer { cpr.endsMonitorSessions = false }
                try cpr.exec(execCommand)
            } else {
                vm.setStoppedState(.postmigrate)
            }
        } catch {
            change(to: .failed, error)
            Report.warning("migration failed: \(error.message)")
        }
    }

    func cancel() { if status == .setup { change(to: .cancelled) } }

    // MARK: Incoming

    /// `-incoming`: where the state comes from.
    public enum Source {
        /// `defer`: `migrate-incoming` will say.
        case later
        case file(path: String)

        /// - Parameter text: `defer`, a URI, or a channel in JSON.
        public init(_ text: String) throws(VMMError) {
            if text == "defer" {
                self = .later
            } else if text.utf8.first == UInt8(ascii: "{") {
                self = .file(path: try MigrationAddress(channel: try JSON(parsing: text)).path)
            } else {
                self = .file(path: try MigrationAddress(uri: text).path)
            }
        }
    }

    /// Makes the VM wait for its state, or gives it the state at once. Follows
    /// the building of the machine.
    /// - Throws: why the state cannot be loaded: fatal.
    public func begin(_ source: Source) throws(VMMError) {
        switch source {
        case .later:
            try cpr.machineBuilt()
            cpr.awaitIncoming()
            isDeferred = true
        case .file(let path):
            let file = try FD.open(path, O_RDONLY | O_NONBLOCK)
            try cpr.machineBuilt { () throws(VMMError) in
                self.cpr.awaitIncoming()
                try self.load(file.raw, path)
            }
        }
    }
    /// Whether `migrate-incoming` is waited for, and whether it has come.
    private var isDeferred = false
    private var hasBegun = false

    /// `migrate-incoming`: loads when the command has been answered.
    /// - Parameter exitsOnError: whether a state that cannot be loaded ends the
    ///   process, and so leads back to the one before, if that waits.
    func incoming(from address: MigrationAddress, exitsOnError: Bool) throws(VMMError) {
        guard isDeferred else {
            throw VMMError(
                hasBegun
                    ? "The incoming migration has already been started"
                    : "'-incoming' was not specified on the command line")
        }
        let fd = try FD.open(address.path, O_RDONLY | O_NONBLOCK).release()
        isDeferred = false
        hasBegun = true
        change(to: .setup)
        vm.loop.later { [weak self] in
            defer { close(fd) }
            guard let self else { return }
            do throws(VMMError) {
                try load(fd, address.path)
            } catch {
                let text = error.prefixed("load of migration failed")
                guard exitsOnError else {
                    isDeferred = true
                    // The client may try again, and take its time.
                    cpr.awaitAnotherLoad()
                    return change(to: .failed, text)
                }
                Report.error(text)
                CprController.giveUp(text)
                exit(1)
            }
        }
    }

    private func load(_ fd: Int32, _ path: String) throws(VMMError) {
        isIncoming = true
        change(to: .active)
        try cpr.load(incoming: fd, mode: Mode.reboot.module ?? "", name: path)
        change(to: .completed)
    }
}
