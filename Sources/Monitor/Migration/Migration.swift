import BatonRuntime
import Glibc

/// QEMU's vocabulary for updates: `migrate` in the modes `cpr-exec`, `cpr-reboot` and
/// `cpr-transfer`, and `-incoming`, on the same machinery as `cpr-save`, `cpr-exec`,
/// `cpr-load` and `cpr-update`.
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
        case transfer = "cpr-transfer"

        /// The mode module that does it.
        var module: String? {
            switch self {
            case .normal: nil
            case .reboot: "reboot"
            case .exec: "restart"
            case .transfer: Migration.modeOfChannels
            }
        }
    }
    /// The mode module behind channels of type `cpr`.
    public static let modeOfChannels = "transfer"
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
    /// Whether the update in hand was ended by `migrate_cancel`.
    private var isCancelled = false
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
                "migration mode 'normal' is not supported",
                hint: "Set the parameter 'mode' to cpr-exec, cpr-transfer or cpr-reboot.")
        }
        guard mode != .transfer || address.channel != nil else { throw VMMError("missing 'cpr' migration channel") }
        if mode == .exec && execCommand.isEmpty { throw VMMError("cpr-exec mode requires setting cpr-exec-command") }
        if let blocker = cpr.blockers(try cpr.requireMode(module)).first { throw blocker }
        // As QEMU opens its file: an error here is the command's.
        let channel = mode == .transfer ? address.channel : nil
        let path = channel == nil ? try address.file() : ""
        if channel == nil { try WholeFile.check(path) }
        isIncoming = false
        isCancelled = false
        started = EventLoop.now
        transferred = 0
        change(to: .setup)
        vm.loop.later { [weak self] in
            guard let self, status == .setup else { return }
            do throws(VMMError) {
                change(to: .active)
                if let channel { try handOver(to: channel, module) } else { try carryOut(path, module) }
            } catch {
                change(to: isCancelled ? .cancelled : .failed, error)
                if !isCancelled { Report.warning("migration failed: \(error.message)") }
            }
        }
    }

    /// The guest goes to another process; this one stays as QEMU's does, with its monitors,
    /// until it is told to quit.
    private func handOver(to channel: String, _ module: String) throws(VMMError) {
        var options = CprController.UpdateOptions()
        options.mode = module
        cpr.monitorSockets = .kept
        defer { cpr.monitorSockets = .handedOver }
        try cpr.update(.channel(channel, peer: nil), options)
        finished = EventLoop.now
        change(to: .completed)
    }

    private func carryOut(_ path: String, _ module: String) throws(VMMError) {
        try cpr.save(to: path, mode: module)
        var file = stat()
        if stat(path, &file) == 0 { transferred = UInt64(file.st_blocks) * 512 }
        change(to: .device)
        finished = EventLoop.now
        change(to: .completed)
        if mode == .exec {
            // As QEMU's: nobody's session with a monitor goes on. The
            // connections end when the new process stands.
            cpr.monitorSockets = .ended
            defer { cpr.monitorSockets = .handedOver }
            try cpr.exec(execCommand)
        } else {
            vm.setStoppedState(.postmigrate)
        }
    }

    /// As long as the guest has not been stopped for the change of hands; or a save of `cpr-save`.
    func cancel() {
        if status == .setup {
            change(to: .cancelled)
        } else if cpr.takeBackSave() {
            return
        } else if cpr.cancelUpdate() {
            isCancelled = true
        }
    }

    // MARK: Incoming

    /// `-incoming`: where the state comes from.
    public enum Source {
        /// `defer`: `migrate-incoming` will say.
        case later
        case file(path: String)
        /// A channel of type `cpr`: the path of a unix socket, at which a VMM that hands its guest
        /// over is waited for.
        case channel(path: String)
        /// Of a channel of type `main`: a socket, which would carry the state of the devices in QEMU.
        case socket(uri: String)

        /// - Parameter text: `defer`, a URI, or a channel in JSON.
        public init(_ text: String) throws(VMMError) {
            if text == "defer" {
                self = .later
                return
            }
            var address = MigrationAddress()
            if text.utf8.first == UInt8(ascii: "{") {
                try address.add(channel: try JSON(parsing: text))
            } else {
                try address.add(uri: text)
            }
            if let path = address.channel {
                self = .channel(path: path)
            } else if case .socket(let uri)? = address.main {
                self = .socket(uri: uri)
            } else {
                self = .file(path: try address.file())
            }
        }

        public var isChannel: Bool {
            if case .channel = self { return true }
            return false
        }
    }

    /// Makes the VM wait for its state, or gives it the state at once. Follows
    /// the building of the machine.
    /// - Throws: why the state cannot be loaded: fatal.
    public func begin(_ source: Source) throws(VMMError) {
        switch source {
        case .channel: preconditionFailure("a channel comes before the machine")
        case .socket(let uri): throw MigrationAddress.unknown(uri)
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
        let path = try address.file()
        let fd = try FD.open(path, O_RDONLY | O_NONBLOCK).release()
        isDeferred = false
        hasBegun = true
        change(to: .setup)
        vm.loop.later { [weak self] in
            defer { close(fd) }
            guard let self else { return }
            do throws(VMMError) {
                try load(fd, path)
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
