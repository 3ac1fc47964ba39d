import ArgumentParser

/// Tests a CPR mode, or a preserver with it, in tree or out.
@main
struct BatonHarness: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "baton-harness",
        abstract: "Puts a CPR mode through one conformance suite.",
        subcommands: [Run.self, Successor.self], defaultSubcommand: Run.self)
}
