import Foundation
import TestSupport
import Testing

/// Command lines that are to be understood, answered or refused, and in no case ignored.
@Suite struct StartTests {
    /// Runs a command without /proc in a mount namespace of its own.
    private static func withoutProc(_ command: [String]) -> [String] {
        ["unshare", "--mount", "sh", "-c", "mount -t tmpfs none /proc && exec \"$@\"", "sh"] + command
    }

    private static let canHideProc = (try? ChildProcess.run(withoutProc(["test", "!", "-e", "/proc/self"]))) != nil

    @Test(
        "Without /proc the options count all the same",
        .enabled(if: canHideProc, "needs the permission to make a mount namespace"))
    func noProc() throws {
        // The dynamic linker, too, finds what is beside the program by /proc.
        let libraries = ["LD_LIBRARY_PATH": Products.directory]
        let refused = try ChildProcess(
            Self.withoutProc([Products.baton, "-nodefaults", "-S", "-no-such-option"]), environment: libraries)
        #expect(try refused.waitForExit(by: .seconds(20)) == .status(1), "\(refused.report)")
        #expect(refused.errors.contains("-no-such-option: invalid option"), "\(refused.errors)")

        // What cannot be had without it is told: modules, and so machines.
        for options in [["-module", Products.module("mode-restart")], ["-machine", "virt"]] {
            let module = try ChildProcess(
                Self.withoutProc([Products.baton, "-S"] + options), environment: libraries)
            #expect(try module.waitForExit(by: .seconds(20)) == .status(1), "\(module.report)")
            #expect(module.errors.contains("/proc"), "\(module.errors)")
        }
    }

    @Test("An argument that is not UTF-8 is refused, and is no other file")
    func badArgument() throws {
        let process = try ChildProcess([
            "sh", "-c", "exec \"$0\" -nodefaults -S -m 4M -bios none -pidfile \"$(printf 'a\\377b')\"", Products.baton,
        ])
        #expect(try process.waitForExit(by: .seconds(20)) == .status(1), "\(process.report)")
        #expect(process.errors.contains("argument 8 is not valid UTF-8"), "\(process.errors)")
    }

    /// What asks for help, and what must be in the answer.
    static let questions: [([String], String)] =
        [
            (["-h"], "usage:"), (["--help"], "usage:"), (["-version"], "version"),
            (["-M", "help"], "virt"), (["-machine", "?"], "virt"), (["-M", "virt,help"], "memory-backend=<str>"),
            (["-machine", "memory-backend=x,help"], "virt"), (["-accel", "help"], "tcg"),
            (["-accel", "tcg,help"], "thread=<str>"), (["-cpu", "help"], "rv64"),
            (["-cpu", "rv64,help"], "zba=<bool>"), (["-smp", "help"], "cpus=<uint32>"),
            (["-smp", "2,help"], "cpus=<uint32>"), (["-m", "help"], "size=<size>"), (["-m", "1G,help"], "size=<size>"),
            (["-name", "help"], "guest=<str>"), (["-rtc", "help"], "clock=<str>"),
            (["-drive", "help"], "format=<str>"),
            (["-drive", "file=x,help"], "format=<str>"), (["-blockdev", "help"], "filename=<str>"),
            (["-blockdev", "file,help"], "filename=<str>"), (["-device", "help"], "virtio-blk-device"),
            (["-device", "virtio-blk-device,help"], "share-rw=<bool>"), (["-netdev", "help"], "stream"),
            (["-netdev", "stream,help"], "addr.type=<str>"), (["-netdev", "tap,help"], "ifname=<str>"),
            (["-object", "help"], "memory-backend-file"), (["-object", "memory-backend-file,help"], "mem-path=<str>"),
            (["-object", "memory-backend-ram,id=x,help"], "size=<size>"),
            (["-object", "memory-backend-memfd,help"], "seal=<bool>"), (["-object", "iommufd,help"], "fd=<str>"),
            (["-chardev", "help"], "socket"), (["-chardev", "socket,help"], "reconnect-ms=<uint32>"),
            (["-chardev", "null,id=x,help"], "reopen-on-cpr=<bool>"), (["-mon", "help"], "mode=<str>"),
            (["-display", "help"], "none"), (["-d", "help"], "guest_errors"), (["-trace", "help"], "cpr_save"),
            (["-module", "help"], "mode-restart"), (["-cpr-enable", "help"], "restart"),
            (["-M", "microvm,help"], "ioapic2=<OnOffAuto>"),
        ] + hostQuestions

    #if arch(x86_64)
    /// About what is for the host's own processors.
    private static let hostQuestions = [
        (["-M", "microvm", "-cpu", "max,help"], "avx2=<bool>"), (["-accel", "kvm,help"], "device=<str>"),
        (["-accel", "help"], "kvm"),
    ]
    #else
    private static let hostQuestions: [([String], String)] = []
    #endif

    @Test("A question is answered, and starts no VM", arguments: questions)
    func help(question: ([String], String)) throws {
        let (words, answer) = question
        let process = try ChildProcess([Products.baton, "-nodefaults"] + words)
        #expect(try process.waitForExit(by: .seconds(20)) == .status(0), "\(process.report)")
        #expect(process.output.contains(answer), "\(process.output)\(process.errors)")
    }

    /// What is a question about nothing, or no question at all, and what must be said of it.
    static let mistakes: [([String], String)] = [
        (["-M", "pc,help"], "unsupported machine type"), (["-accel", "nothing,help"], "invalid accelerator"),
        (["-cpu", "x,help"], "unable to find CPU model"), (["-device", "x,help"], "not a valid device model"),
        (["-netdev", "x,help"], "does not accept value 'x'"), (["-object", "x,help"], "invalid object type"),
        (["-chardev", "x,help"], "not a valid char driver"), (["-serial", "help"], "not a valid char driver"),
        (["-monitor", "help"], "not a valid char driver"), (["-serial", "null,help"], "there is no help"),
        (["-incoming", "help"], "unknown migration protocol"), (["-kernel", "help"], "Could not open 'help'"),
        (["-m", "foo=1"], "Invalid parameter 'foo'"), (["-m", "2G,maxmem=1G"], "invalid value of maxmem"),
        (["-display", "gtk"], "does not accept value 'gtk'"),
        (["-drive", "file=/dev/null,cache=x"], "invalid cache option"),
        (["-drive", "file=/dev/null,file.locking=maybe"], "'file.locking'"),
    ]

    @Test("What cannot be answered is an error, and starts no VM", arguments: mistakes)
    func mistake(_ mistake: ([String], String)) throws {
        let (words, answer) = mistake
        let process = try ChildProcess([Products.baton, "-nodefaults", "-S"] + words)
        #expect(try process.waitForExit(by: .seconds(20)) == .status(1), "\(process.report)")
        #expect(process.errors.contains(answer), "\(process.errors)")
    }

    @Test("-trace help lists the events that there are")
    func traceEvents() throws {
        let listed = try ChildProcess.run([Products.baton, "-trace", "help"]).split(separator: "\n").map(String.init)
        var found: Set<String> = []
        for directory in ["Sources", "Plugins"] {
            let root = "\(Products.repository)/\(directory)"
            let files = FileManager.default.enumerator(atPath: root)?.compactMap { $0 as? String } ?? []
            for file in files where file.hasSuffix(".swift") {
                let text = try String(contentsOfFile: "\(root)/\(file)", encoding: .utf8)
                for part in text.components(separatedBy: "Log.trace(\"").dropFirst() {
                    found.insert(String(part.prefix { $0 != "\"" }))
                }
            }
        }
        #expect(!found.isEmpty)
        // That of MemfdAllocator has its name in a constant or its own line.
        #expect(Set(listed).isSuperset(of: found))
        #expect(listed == listed.sorted())
    }
}
