import BatonRuntime
import CBaton
import Chardev
import Glibc
import GuestHealth
import Monitor
import PCI
import Virtio

/// Builds the VM from a command line, in the order that an update needs: the
/// CPR state is read before any memory or device exists.
final class Launcher {
    let invocation: Invocation
    let vm: VirtualMachine
    let memory = GuestMemory()
    let loader = ModuleLoader(registry: ModuleRegistry())
    let cpr: CprController
    private let sandbox: SandboxOptions
    private var daemonPipe: Int32?

    /// - Parameters:
    ///   - inherited: what the process before left, read before anything else.
    ///   - startedAt: CLOCK_MONOTONIC in nanoseconds when `main` began.
    init(
        _ invocation: Invocation, sandbox: SandboxOptions, inherited: CprState?, startedAt: Int64
    ) throws(VMMError) {
        (self.invocation, self.sandbox) = (invocation, sandbox)
        vm = try VirtualMachine()
        loader.registry.addBuiltIn(RAMMemoryBackend())
        loader.registry.addBuiltIn(IOThreadType())
        for type in EntropySource.all { loader.registry.addBuiltIn(type) }
        for type in guestHealthDeviceTypes() + pciDeviceTypes() { loader.registry.addBuiltIn(type) }
        cpr = CprController(
            vm: vm, memory: memory, registry: loader.registry, inherited: inherited, startedAt: startedAt)
        loader.registry.cpr = cpr
    }

    /// Builds everything and runs the VM to its end.
    /// - Returns: the process' exit status.
    func run() throws(VMMError) -> Int32 {
        do throws(VMMError) { return try buildAndRun() } catch { throw cpr.explained(error) }
    }

    private func buildAndRun() throws(VMMError) -> Int32 {
        try ModuleOptions.load(invocation, loader: loader)
        let machine = try MachineOptions(invocation, loader: loader)
        try general(machine)
        try ModuleOptions.enableModes(invocation, cpr: cpr, loader: loader)
        let incoming = try incomingSource()
        if case .channel(let path)? = incoming { try receiveGuest(path) }
        try findKeptGuest(incoming: incoming)
        try ModuleOptions.enableImpliedModes(
            machine: machine, incoming: invocation.has("incoming"), cpr: cpr, loader: loader)
        let plugged = try PluggedParts(vm.handover)
        cpr.plugged = plugged
        let objects = ObjectOptions(vm: vm, memory: memory, loader: loader)
        for option in plugged.settle(.object, invocation) {
            try invocation.at(option.place) { () throws(VMMError) in try objects.create(option.value) }
        }
        // Before anything holds a lock or a pidfile, and before a thread could
        // exist. A successor is in the background already.
        try daemonize()
        let pidFile = try openPidFile()
        // Before a chardev changes the terminal's mode, or waits for a client.
        try Signals.install(vm)
        ServiceManager.register(vm, cpr)
        let backends = try Backends(invocation, plugged: plugged, vm: vm, loader: loader)
        let (board, devices) = try BoardBuilder.build(
            invocation, machine: machine, backends: backends, plugged: plugged, vm: vm, memory: memory, loader: loader)
        if let file = machine.dumpDTB {
            guard cpr.inherited == nil else {
                throw VMMError("dumpdtb= ends the VMM, which is to take over a guest", hint: "Leave dumpdtb= out.")
            }
            try board.dumpDeviceTree(to: file)
            vm.endHelpers()
            return 0
        }
        let registry = loader.registry
        try registerCoreCommands(
            vm: vm, memory: memory,
            context: CoreCommandContext {
                registry.machineTypes.map {
                    .init(
                        name: $0.name, summary: $0.summary, maximumCPUs: $0.maximumCPUs,
                        defaultCPUType: "\($0.cpuModels.first ?? "")-\($0.architecture)-cpu", hasACPI: $0.hasACPI)
                }
            })
        try ActionOptions.register(vm: vm)
        try registerChardevCommands(vm: vm)
        try registerNetCommands(vm: vm) { devices.netBackends }
        try registerBlockCommands(vm: vm, cpr: cpr, options: backends.blocks, plugged: plugged)
        let hotPlug = HotPlug(
            vm: vm, cpr: cpr, devices: devices, objects: objects, loader: loader, plugged: plugged,
            globals: try GlobalProperties(invocation))
        try hotPlug.registerCommands()
        try registerBalloonCommands(vm: vm)
        try registerPCICommands(vm: vm) { board.pciBus }
        try cpr.registerCommands()
        let migration = Migration(cpr: cpr)
        try migration.registerCommands()
        try loader.registry.installCommands(vm.commands)
        if cpr.inherited == nil { try board.prepareImages() }
        // Last: a monitor that waits for a client finds the machine complete.
        try MonitorOptions.startMetrics(invocation, vm: vm)
        try MonitorOptions.start(invocation, backends: backends, vm: vm)
        try MonitorOptions.startDebugger(invocation, vm: vm, cpr: cpr)
        try ChardevUpdate.register(vm: vm, cpr: cpr)
        MonitorUpdate.register(vm: vm, cpr: cpr)
        ChardevUpdate.closeLeftovers(cpr)
        NetBackendUpdate.register({ devices.netBackends }, cpr: cpr)
        BlockUpdate.register(vm: vm)
        BlockUpdate.closeUnclaimed(cpr)
        vm.closeUnclaimedHelpers()
        if invocation.has("only-cpr-capable") { try cpr.requireCapable() }
        try sandbox.apply(vm, cpr, loader)
        if let incoming, !incoming.isChannel {
            do throws(VMMError) {
                try migration.begin(incoming)
            } catch {
                throw error.prefixed("-incoming \(invocation.last("incoming") ?? "")")
            }
        } else {
            try cpr.machineBuilt()
        }
        if cpr.inherited != nil { MonitorUpdate.machineStands(vm: vm) }
        if let daemonPipe { cbaton_daemon_ready(daemonPipe, 0) }
        daemonPipe = nil
        if cpr.isSuccessor { ServiceManager.showStatus() } else { ServiceManager.machineStands() }
        // A process that took over a guest waits for cpr-load.
        if vm.autostart && cpr.inherited == nil && incoming == nil { try vm.start() }
        let status = vm.run()
        if cpr.isHandedOver { leave(status, devices.netBackends) }
        ServiceManager.ending()
        cpr.ending()
        GDBServer.ending(vm: vm, status: status)
        for chardev in vm.chardevs { chardev.shutDown() }
        for backend in devices.netBackends { backend.shutDown() }
        vm.endHelpers()
        pidFile?.remove()
        Log.finish()
        return status
    }

    /// A successor is in the background already.
    private func daemonize() throws(VMMError) {
        guard invocation.has("daemonize"), cpr.inherited == nil, daemonPipe == nil else { return }
        let pipe = cbaton_daemonize()
        guard pipe >= 0 else { throw .system("could not go to the background") }
        daemonPipe = pipe
    }

    /// `-incoming` with a channel of type `cpr`: waits for a VMM that hands its guest over.
    private func receiveGuest(_ path: String) throws(VMMError) {
        // The old VMM watches the process that waits.
        try daemonize()
        do throws(VMMError) {
            if let mode = cpr.enabledModes.first(where: { $0.promises.contains(.connects) }) {
                try cpr.receive(mode, path)
            } else {
                try cpr.receive(try cpr.requireMode(Migration.modeOfChannels), path)
            }
        } catch {
            throw error.prefixed("-incoming \(invocation.last("incoming") ?? "")")
        }
    }

    /// Takes over the guest of this VM that a mode has kept, if there is one. It goes on at once, or with `-S` or
    /// `-incoming` when a client says so.
    private func findKeptGuest(incoming: Migration.Source?) throws(VMMError) {
        guard cpr.enabledModes.contains(where: { $0.promises.contains(.survivesHostUpdate) }) else { return }
        cpr.descriptorStore = ServiceManager.descriptorStore
        try daemonize()
        try cpr.findKeptGuest(loadsAtOnce: vm.autostart && incoming == nil)
    }

    /// The guest is another process': ends this one, and touches nothing that went with it.
    private func leave(_ status: Int32, _ netBackends: [NetBackend]) -> Never {
        ServiceManager.ending()
        for chardev in vm.chardevs { chardev.leaveGuest() }
        for backend in netBackends { backend.leaveGuest() }
        Log.finish()
        // Destructors of parts, which would tidy up, are not called.
        exit(status)
    }

    private func general(_ machine: MachineOptions) throws(VMMError) {
        memory.merge = machine.mergeMemory
        memory.dumpGuestCore = machine.dumpGuestCore
        try invocation.withLast("name") { text throws(VMMError) in
            let options = try KeyValueOptions(text, impliedKey: "guest")
            vm.name = try options.string("guest")
            _ = try options.string("process")
            _ = try options.bool("debug-threads")
            try options.finish()
        }
        try invocation.withLast("uuid") { text throws(VMMError) in
            guard isUUID(text) else {
                throw VMMError(
                    "failed to parse UUID string: wrong format", hint: "A UUID is written 8-4-4-4-12 in hex digits.")
            }
            vm.uuid = text
        }
        try invocation.withLast("rtc") { text throws(VMMError) in
            let options = try KeyValueOptions(text)
            vm.clock.zone = try SmallOptions.zone(try options.string("base"))
            vm.clock.stopsWithVM = try options.enumeration("clock", ["host", "vm"]) == "vm"
            _ = try options.string("driftfix")
            try options.finish()
        }
        try SmallOptions.apply(invocation, vm: vm)
        if let display = invocation.last("display"), display != "none" {
            throw VMMError("Parameter 'type' does not accept value '\(display)'", hint: "There is no display but none.")
        }
        vm.autostart = !invocation.has("S")
        try ActionOptions.apply(invocation, vm: vm)
    }

    /// `-incoming`, unless a checkpoint comes with the CPR state.
    private func incomingSource() throws(VMMError) -> Migration.Source? {
        guard cpr.inherited?.bringsCheckpoint != true else { return nil }
        var sources: [Migration.Source] = []
        for text in invocation.all("incoming") {
            do throws(VMMError) {
                sources.append(try Migration.Source(text))
            } catch {
                throw error.prefixed("-incoming \(text)")
            }
        }
        // As in QEMU, of several main channels the last holds. Beside a channel of type
        // cpr, which everything comes over, there is nothing for it to carry.
        return sources.last(where: \.isChannel) ?? sources.last
    }

    private func isUUID(_ text: String) -> Bool {
        let groups = text.split(separator: "-", omittingEmptySubsequences: false)
        return groups.map(\.utf8.count) == [8, 4, 4, 4, 12] && groups.allSatisfy { UInt64($0, radix: 16) != nil }
    }

    private func openPidFile() throws(VMMError) -> PidFile? {
        let path = invocation.last("pidfile")
        guard cpr.isTrial else { return try PidFile(path, cpr) }
        try PidFile.check(path, cpr)
        return nil
    }
}
