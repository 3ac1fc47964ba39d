import BatonRuntime
import Chardev
import Monitor
import Virtio
import VirtBoard

/// Options that only print something: `-help`, `-version` and the `help`
/// argument of others.
enum Help {
    /// Prints and exits when the command line asks for it.
    static func answer(_ invocation: Invocation) throws(VMMError) {
        if invocation.has("h") { say(OptionTable.help) }
        if invocation.has("version") { say("Baton emulator version \(MonitorVersion.package)\n") }
        func wants(_ option: String) -> Bool {
            invocation.all(option).contains { $0 == "help" || $0 == "?" }
        }
        if wants("machine") { say("Supported machines are:\nvirt                 RISC-V VirtIO board (default)\n") }
        if wants("accel") { say("Accelerators supported in Baton binary:\ntcg\n") }
        if wants("cpu") { say("Available CPUs:\n  rv64\n  max\n") }
        if wants("chardev") { say(ChardevFactory.help) }
        if wants("netdev") { say(ModuleOptions.netHelp(loader: try moduleLoader(invocation))) }
        for device in invocation.all("device") {
            guard let request = DeviceModel.helpRequest(device) else { continue }
            say(try ModuleOptions.deviceHelp(request, loader: try moduleLoader(invocation)))
        }
        if wants("d") { say(LogOptions.help) }
        for (option, kind) in [("module", ModuleOptions.HelpKind.modules), ("cpr-enable", .modes), ("object", .objects)]
        where wants(option) {
            say(ModuleOptions.help(kind, loader: try moduleLoader(invocation)))
        }
    }

    /// A loader with the modules that the command line names.
    private static func moduleLoader(_ invocation: Invocation) throws(VMMError) -> ModuleLoader {
        let loader = ModuleLoader(registry: ModuleRegistry())
        loader.registry.addBuiltIn(RAMMemoryBackend())
        for path in invocation.all("module") where path != "help" && path != "?" { try loader.load(path: path) }
        return loader
    }
}
