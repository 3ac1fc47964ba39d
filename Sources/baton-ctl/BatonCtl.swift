import ArgumentParser

/// The operator's side tool.
@main
struct BatonCtl: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "baton-ctl", abstract: "Looks after VMs that run under baton.",
        subcommands: [Inspect.self, NewModule.self, Update.self])
}
