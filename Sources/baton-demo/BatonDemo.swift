import ArgumentParser

/// The side tool behind `make run`: gets a guest, runs it under the VMM,
/// replaces the VMM under it, and says what that cost and what was lost.
@main
struct BatonDemo: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "baton-demo",
        abstract: "Runs a guest under baton and replaces the VMM process under it.",
        subcommands: [
            RunCommand.self, PeersCommand.self, BenchCommand.self, FetchCommand.self, PeerCommand.self,
            TestsCommand.self, GuestCommand.self, FloodCommand.self, KVMCommand.self, LabCommand.self,
            ManualCommand.self, CloudCommand.self, FioCommand.self, SoakCommand.self,
        ],
        defaultSubcommand: RunCommand.self)
}

/// `baton-demo fetch`: fills the cache, so that a later run needs no network.
struct FetchCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "fetch", abstract: "Downloads Debian's kernel and installer initrd into the cache.")

    @Option(help: "The machine that they are for: virt or microvm.")
    var machine = GuestMachine.virt

    @Option(help: "Directory to keep downloads in.")
    var cache = ".cache"

    @Flag(help: "Look for a newer version than the cache has.")
    var newest = false

    @Flag(help: "Only read the archive's index; status 0 if that can be had.")
    var check = false

    func run() throws {
        let installer = try DebianInstaller(cache: cache, architecture: machine.architecture)
        if check { return try installer.checkArchive() }
        let files = try installer.obtain(newest: newest, progress: { print($0) })
        print(
            "version \(files.version)\nkernel \(files.kernel)\ninitrd \(files.initrd)\ndisk module \(files.diskModule)")
    }
}

/// `baton-demo guest`: builds a guest of our own, for tests and for use by hand.
struct GuestCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "guest", abstract: "Builds one of the guest programs in Tests/Guests.")

    @Argument(
        help: "demo (a static Linux program), counter, bench, blockload or soak (flat images), or probe (of KVM).")
    var guest: GuestProgram

    @Option(help: "The machine that a demo is for: virt or microvm.")
    var machine = GuestMachine.virt

    @Option(name: .shortAndLong, help: "File to write.")
    var output: String

    func run() throws {
        try GuestBuilder().build(guest, for: machine, to: output)
    }
}
