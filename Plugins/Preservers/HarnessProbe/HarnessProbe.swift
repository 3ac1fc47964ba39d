import BatonRuntime
import Glibc

/// The module `preserver-harness-probe`: baton-harness' own hand inside the
/// VMM, which lets an update fail at an exact point. It keeps no descriptor.
///
/// The environment variable `BATON_HARNESS_PROBE` names its file. Each line of
/// that is a phase (as `CprPhase` spells it, or `register` for the loading of
/// modules) and an action: `kill`, `segv`, `exit`, `stop`, `block`, `throw`.
/// It is read anew at each phase, so the harness can change it at any time.
/// What happened is appended to the file's name with `.log`: a phase, the PID.
@_cdecl("baton_module_query")
public func batonModuleQuery() -> UnsafeRawPointer {
    ModuleDescriptor.make(kind: "preserver", name: "harness-probe", version: "1.0") { registrar throws(VMMError) in
        let probe = HarnessProbe(file: getenv("BATON_HARNESS_PROBE").map { String(cString: $0) })
        try probe.reached("register")
        try registrar.add(probe)
    }
}

final class HarnessProbe: FdPreserver {
    let name = "harness-probe"
    private let file: String?

    init(file: String?) { self.file = file }

    func notify(_ phase: CprPhase, cpr: CprController) throws(VMMError) { try reached(phase.rawValue) }

    func reached(_ phase: String) throws(VMMError) {
        guard let file else { return }
        log("\(phase) \(getpid())\n", to: file + ".log")
        guard let fd = try? FD.open(file, O_RDONLY),
            let bytes = try? FD.readAll(fd.raw, limit: 4096, from: "the probe's file")
        else { return }
        for line in String(decoding: bytes, as: UTF8.self).split(separator: "\n") {
            let words = line.split(separator: " ")
            if words.count == 2, words[0] == phase { try carryOut(String(words[1]), in: phase) }
        }
    }

    private func carryOut(_ action: String, in phase: String) throws(VMMError) {
        switch action {
        case "kill": kill(getpid(), SIGKILL)
        case "segv":
            signal(SIGSEGV, SIG_DFL)
            kill(getpid(), SIGSEGV)
        case "stop": kill(getpid(), SIGSTOP)
        case "exit": _exit(1)
        case "block": while true { pause() }
        case "throw": throw VMMError("the harness' probe refuses in phase '\(phase)'")
        default: throw VMMError("the harness' probe knows no action '\(action)'")
        }
    }

    private func log(_ text: String, to path: String) {
        guard let fd = try? FD.open(path, O_WRONLY | O_CREAT | O_APPEND, mode: 0o600) else { return }
        try? FD.writeAll(fd.raw, Array(text.utf8), to: path)
    }
}
