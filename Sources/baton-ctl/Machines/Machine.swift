import ArgumentParser
import BatonRuntime
import Foundation

/// A VM of this host, as far as its monitor's address goes.
struct Machine {
    /// By which it is shown: its directory's name, or the monitor's address.
    let name: String
    /// A unix socket's path, or `HOST:PORT`.
    let monitor: String

    /// - Parameters:
    ///   - milliseconds: how long the VMM may take to greet.
    ///   - onEvent: see `MonitorConnection`.
    func connect(
        milliseconds: Int64, onEvent: @escaping (_ name: String, _ data: JSONObject) -> Void = { _, _ in }
    ) throws -> MonitorConnection {
        try MonitorConnection(monitor, milliseconds: milliseconds, onEvent: onEvent)
    }
}

/// Where VMs are found: a directory for each in one that all share, with the monitor's socket in it, as
/// `baton@.service` makes them.
struct MachineDirectory: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "Where VMs are: each has a directory with the socket 'qmp' of its monitor. (default: /run/baton for root, "
                + "else baton in $XDG_RUNTIME_DIR)", valueName: "directory"))
    var directory: String?

    private static let socket = "qmp"
    /// For a shell: the services' VMs.
    static let names = CompletionKind.shellCommand("ls /run/baton 2>/dev/null")

    var path: String {
        if let directory { return directory }
        if geteuid() != 0, let own = ProcessInfo.processInfo.environment["XDG_RUNTIME_DIR"] { return "\(own)/baton" }
        return "/run/baton"
    }

    /// All VMs, by name. A directory that there is not has none.
    func all() -> [Machine] {
        let names = (try? FileManager.default.contentsOfDirectory(atPath: path)) ?? []
        return names.sorted().map { Machine(name: $0, monitor: "\(path)/\($0)/\(Self.socket)") }
            .filter { FileManager.default.fileExists(atPath: $0.monitor) }
    }

    func find(_ name: String) throws -> Machine {
        let machine = Machine(name: name, monitor: "\(path)/\(name)/\(Self.socket)")
        guard !name.contains("/"), FileManager.default.fileExists(atPath: machine.monitor) else {
            throw VMMError(
                "there is no VM '\(name)' in \(path)",
                hint: "'baton-ctl list' shows those that there are; --qmp names a monitor elsewhere.")
        }
        return machine
    }
}

/// Which VM a command is about: one by name, or by the address of its monitor.
struct MachineChoice: ParsableArguments {
    @Option(help: ArgumentHelp("Its monitor: a unix socket's path, or HOST:PORT.", valueName: "address"))
    var qmp: String?

    @OptionGroup var directory: MachineDirectory

    /// - Parameter name: as it was given; nil when it was not.
    func machine(_ name: String?) throws -> Machine {
        switch (name, qmp) {
        case (let name?, nil): try directory.find(name)
        case (nil, let address?): Machine(name: address, monitor: address)
        default: throw ValidationError("name the VM, or its monitor with --qmp")
        }
    }
}

/// Several VMs: those that are named, or all.
struct MachineChoices: ParsableArguments {
    @Option(
        help: ArgumentHelp("A monitor: a unix socket's path, or HOST:PORT; may be given again.", valueName: "address"))
    var qmp: [String] = []

    @OptionGroup var directory: MachineDirectory

    func machines(_ names: [String]) throws -> [Machine] {
        if names.isEmpty, qmp.isEmpty { return directory.all() }
        return try names.map { try directory.find($0) } + qmp.map { Machine(name: $0, monitor: $0) }
    }
}
