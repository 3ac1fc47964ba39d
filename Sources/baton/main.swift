import BatonRuntime
import Glibc

// A runtime that this executable was not built with lacks the symbol, and the
// dynamic linker says so, before anything goes wrong in it.
_batonRuntimeStamp()
BatonVersion.revision = buildRevision
let startedAt = EventLoop.now

/// Prints and ends, with success if all is written.
func say(_ text: String) -> Never {
    do throws(VMMError) { try FD.writeAll(1, Array(text.utf8), to: "standard output") } catch {
        Report.error(error)
        exit(1)
    }
    exit(0)
}

do throws(VMMError) {
    // First, so that whoever waits for us is told of everything that is refused.
    let inherited = try CprState.inherited()
    LogPrefix.findJournal()
    ServiceManager.find()
    // What is opened from here on may be opened again in the sandbox.
    HostAccess.isNoting = HostAccess.socket < 0
    let invocation = try Invocation(Array(try ProcessArguments.all().dropFirst()))
    let sandbox = try SandboxOptions(invocation)
    try LogOptions.apply(invocation, isTrial: inherited?.isTrial == true)
    try Help.answer(invocation)
    if inherited == nil { try CprController.checkIsNoSuccessor() }
    try sandbox.prepare(inherited, isQuiet: invocation.has("daemonize"))
    exit(try Launcher(invocation, sandbox: sandbox, inherited: inherited, startedAt: startedAt).run())
} catch {
    Report.error(error)
    CprController.giveUp(error)
    exit(1)
}
