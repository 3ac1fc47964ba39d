import BatonRuntime
import CBaton
import Glibc

/// `-sandbox`, `-runas` and `-run-with`: what the VMM gives up before its guest's first instruction.
struct SandboxOptions {
    /// Nil without a sandbox.
    private let sandbox: Sandbox.Options?
    /// Whether the command line says that there is to be one, and so a whole one. Else a VM that starts gets what the
    /// kernel has for it, and one that is taken over from a VMM before stays as it is.
    private let isExplicit: Bool
    private let user: Sandbox.User?
    private let root: String?
    /// Of `-incoming`.
    private let incomingFiles: [String]

    var isOn: Bool { sandbox != nil }

    init(_ invocation: Invocation) throws(VMMError) {
        incomingFiles = invocation.all("incoming").filter { $0.hasPrefix("file:") }.map { String($0.dropFirst(5)) }
        var (isWanted, sandbox): (Bool?, Sandbox.Options) = (nil, Sandbox.Options())
        try invocation.withLast("sandbox") { text throws(VMMError) in
            (isWanted, sandbox) = try SandboxOptions.parse(text)
        }
        self.sandbox = isWanted == false ? nil : sandbox
        isExplicit = isWanted == true
        var (user, root): (Sandbox.User?, String?) = (nil, nil)
        try invocation.withLast("runas") { text throws(VMMError) in user = try SandboxOptions.user(text) }
        try invocation.each("run-with") { text throws(VMMError) in
            let options = try KeyValueOptions(text)
            root = try options.string("chroot") ?? root
            if let name = try options.string("user") { user = try SandboxOptions.user(name) }
            for key in ["async-teardown", "exit-with-parent"] where try options.bool(key) == true {
                throw VMMError(
                    "-run-with \(key)=on is not supported",
                    hint: key == "async-teardown"
                        ? "An old VMM gives its memory back beside the running guest as it is."
                        : "Use the service manager's means: a VM may go on in another process after an update.")
            }
            try options.finish()
        }
        (self.user, self.root) = (user, root)
    }

    /// - Returns: whether there is to be one, if the text says so; and how it is to be.
    private static func parse(_ text: String) throws(VMMError) -> (Bool?, Sandbox.Options) {
        let options = try KeyValueOptions(text, impliedKey: "enable")
        let isWanted = try options.bool("enable")
        var sandbox = Sandbox.Options()
        func allows(_ key: String, _ otherwise: Bool, _ words: [String] = ["allow", "deny"]) throws(VMMError) -> Bool {
            guard let word = try options.string(key) else { return otherwise }
            guard words.contains(word) else { throw VMMError("invalid argument for \(key)") }
            return word == "allow"
        }
        sandbox.allowsObsolete = try allows("obsolete", false)
        sandbox.allowsPrivileges = try allows("elevateprivileges", false, ["allow", "deny", "children"])
        sandbox.allowsSpawning = try allows("spawn", true)
        sandbox.allowsResourceControl = try allows("resourcecontrol", true)
        for path in try options.strings("paths") {
            var status = stat()
            guard path.hasPrefix("/"), stat(path, &status) == 0, status.st_mode & S_IFMT == S_IFDIR else {
                throw VMMError(
                    "-sandbox paths=\(path) is not a directory", hint: "Give the absolute path of one that is there.")
            }
            sandbox.paths.append(path)
        }
        try options.finish()
        return (isWanted, sandbox)
    }

    /// `NAME` or `UID:GID`.
    private static func user(_ text: String) throws(VMMError) -> Sandbox.User {
        var (uid, gid): (UInt32, UInt32) = (0, 0)
        if cbaton_find_user(text, &uid, &gid) == 0 { return Sandbox.User(name: text, uid: uid, gid: gid) }
        let numbers = text.split(separator: ":", omittingEmptySubsequences: false).map { UInt32($0) }
        guard numbers.count == 2, let uid = numbers[0], let gid = numbers[1], uid != .max, gid != .max else {
            throw VMMError("User \"\(text)\" doesn't exist (and is not <uid>:<gid>)")
        }
        return Sandbox.User(name: nil, uid: uid, gid: gid)
    }

    /// Starts what the sandbox needs, before the process has threads and anything of the VM.
    /// - Parameter isQuiet: whether the process goes to the background.
    func prepare(_ inherited: CprState?, isQuiet: Bool) throws(VMMError) {
        // By itself for a VM that starts, and not in a build for a sanitizer.
        let isWanted =
            inherited == nil ? isExplicit || cbaton_is_checked() == 0 : isExplicit && inherited?.isTrial == false
        guard isOn, isWanted, HostAccess.socket < 0 else { return HostAccess.isNoting = false }
        if isExplicit, let lack = Sandbox.lacks.first {
            throw VMMError(
                "-sandbox on needs what this kernel lacks: \(lack)",
                hint: "Use -sandbox off, and the service manager's means, such as SystemCallFilter=.")
        }
        do throws(VMMError) { try Warden.start(isQuiet: isQuiet) } catch {
            if isExplicit { throw error }
            HostAccess.isNoting = false
            Report.warning("the VM has no sandbox: \(error.message)")
        }
    }

    /// Does all of it: when everything that the command line names is open, and no guest has run. A trial, and a new VMM
    /// that is in its VM's sandbox already, have nothing to do.
    func apply(_ vm: VirtualMachine, _ cpr: CprController, _ loader: ModuleLoader) throws(VMMError) {
        guard !cpr.isTrial else { return }
        guard HostAccess.socket < 0 else {
            if !isOn { Report.warning("the VM stays in the sandbox in which it was started") }
            return
        }
        guard let sandbox, HostAccess.preparedSocket >= 0 else { return try changeUser() }
        // A guest that was kept has no VMM any more that anything is shared with.
        guard cpr.inherited != nil, !cpr.hasKeptGuest else { return try putOn(sandbox, vm, cpr, loader) }
        // The VMM before had none. What is another's until the guest is handed over is opened then, and nothing of this
        // is in the pause.
        cpr.takePart(
            handOver: {}, failed: {},
            committed: {
                vm.loop.later {
                    do throws(VMMError) {
                        try putOn(sandbox, vm, cpr, loader)
                    } catch {
                        Report.error(error.prefixed("the VM has no sandbox"))
                    }
                }
            })
    }

    private func putOn(
        _ sandbox: Sandbox.Options, _ vm: VirtualMachine, _ cpr: CprController, _ loader: ModuleLoader
    ) throws(VMMError) {
        cpr.prepareForSandbox()
        // What is read later, and may be as it has been looked at now.
        for path in incomingFiles { _ = try? FD.openFile(path, O_RDONLY) }
        try vm.withoutThreads { () throws(VMMError) in
            let lack = try Sandbox(sandbox).putOn(
                modules: loader.loaded, directories: loader.directories, isStrict: isExplicit,
                changeUser: changeUser)
            if let lack { Report.warning("the VM's sandbox is not whole: \(lack.message)") }
        }
    }

    private func changeUser() throws(VMMError) {
        if let root {
            guard cbaton_change_root(root) == 0 else { throw .system("chroot failed") }
        }
        guard let user, user.uid != geteuid() || user.gid != getegid() else { return }
        guard cbaton_set_groups(user.name, user.gid) == 0 else {
            throw .system("Failed to set the groups of user \(user.name ?? "\(user.uid)")")
        }
        guard cbaton_become_user(user.uid, user.gid) == 0 else {
            throw .system("Failed to setuid(\(user.uid)) and setgid(\(user.gid))")
        }
    }
}
