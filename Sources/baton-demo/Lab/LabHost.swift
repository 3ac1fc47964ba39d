import Foundation
import ProcessSupport

/// An emulated PC whose Linux has a real KVM (SVM and nested paging emulated) and this machine's file system below it.
///
/// All is emulated by software, so it needs nothing of the machine, and everything in it takes 10 to 50 times as long.
struct LabHost {
    /// What kind of PC it is.
    enum Setup: CaseIterable {
        /// Debian's kernel, and PCI devices behind an IOMMU.
        case standard
        /// The same with a kernel of our own, which has what Debian's lacks.
        case ownKernel
        /// With persistent memory; its Linux may start anew any number of times.
        case persistent
        /// A kernel of our own with the Live Update Orchestrator, and a directory of this machine's that it can write
        /// to; its Linux may start anew any number of times.
        case liveUpdate
        /// The same with systemd, which runs the command.
        case service

        var hasOrchestrator: Bool { [.liveUpdate, .service].contains(self) }
        var hasOwnKernel: Bool { self == .ownKernel || hasOrchestrator }
        /// Its Linux may end, so that there can be one case in it.
        var mayStartAnew: Bool { self == .persistent || hasOrchestrator }
    }

    let files: LabFiles
    let directory: TemporaryDirectory
    let setup: Setup

    /// MiB, of which what is used is allocated. There is one CPU: with more, code that Linux changes while another
    /// CPU runs it makes it crash in this emulation, now and then.
    private static let memory = 4096
    /// The counter is this machine's. What the lab's Linux makes of it by an emulated timer, while this machine is
    /// busy, may be a fourth of its rate: then its clocks go four times as fast.
    private func commandLine() throws -> String {
        let meter = directory.file("ticks")
        try GuestBuilder().buildTickMeter(to: meter)
        let rate = try Tool.require([meter]).text.trimmingCharacters(in: .whitespacesAndNewlines)
        return Self.commandLine + " tsc_early_khz=\(rate)" + (setup.hasOrchestrator ? " kho=on liveupdate=on" : "")
    }
    private static let commandLine =
        "console=ttyS0 quiet panic=-1 mitigations=off init_on_alloc=0 tsc=reliable no_timer_check nokaslr intel_iommu=on"
    private static let modules = [
        "9pnet_virtio", "9p", "overlay", "kvm_amd", "vfio-pci", "vfio_iommu_type1", "nfit", "nd_pmem", "ext4",
        "vhost_vsock",
    ]
    static let initrdName = "lab-initrd"
    /// The program that executes a kernel, in the same directory.
    static let kexecProgram = "kexec"
    /// Of the file system that is `directory`, as it is outside.
    static let sharedTag = "shared"
    static let statusMark = "lab: status "

    /// Boots the lab, runs a command in it as root, in the working directory, and switches it off.
    /// - Parameters:
    ///   - command: absolute paths are this machine's.
    ///   - onLine: is called with each line of its output.
    /// - Returns: the command's status.
    func run(_ command: [String], seconds: Double, onLine: @escaping (String) -> Void) throws -> Int32 {
        let arguments = files.emulator + (try options(initrd: try makeInitrd(command)))
        let emulator = try VMMProcess(
            [try Self.path(of: arguments[0])] + arguments.dropFirst(), log: directory.file("emulator.log"))
        let output = GuestConsole(process: emulator, log: directory.file("output.log"))
        var status: Int32?
        output.onLine = { line in
            guard line.hasPrefix(Self.statusMark) else { return onLine(line) }
            status = Int32(line.dropFirst(Self.statusMark.count))
        }
        let deadline = Clock.now + seconds
        while emulator.isRunning, Clock.now < deadline {
            var ready = pollfd(fd: output.descriptor, events: Int16(POLLIN), revents: 0)
            poll(&ready, 1, 200)
            output.drain()
        }
        output.drain()
        if let status { return status }
        let late = emulator.isRunning ? "did not end in \(Int(seconds)) s" : "ended without the command's status"
        emulator.end()
        throw Failure("the lab \(late): \(emulator.epitaph())\n\(consoleTail)")
    }

    private var kernel: LinuxKernel { setup.hasOwnKernel ? files.own : files.host }

    /// The emulator's.
    private func options(initrd: String) throws -> [String] {
        let disk = try directory.writeSparse("nvme.img", size: 64 << 20), loop = directory.file("loop")
        let options = [
            "-nodefaults", "-no-user-config", "-display", "none",
            "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max,la57=off",
            "-kernel", kernel.image, "-initrd", initrd, "-append", try commandLine(),
            "-serial", "file:\(consoleLog)", "-serial", "stdio",
            "-virtfs", "local,path=/,mount_tag=below,security_model=none,readonly=on,multidevs=remap",
            "-device", "intel-iommu,intremap=on,caching-mode=on", "-device", "edu,addr=10,dma_mask=0xffffffff",
            "-drive", "file=\(disk),format=raw,if=none,id=nvme", "-device", "nvme,drive=nvme,serial=lab,addr=11",
            // What the card sends comes back to it.
            "-netdev", "dgram,id=loop,local.type=unix,local.path=\(loop),remote.type=unix,remote.path=\(loop)",
            "-device", "e1000e,netdev=loop,addr=12",
        ]
        if setup.hasOrchestrator {
            func share(_ path: String, as tag: String) -> [String] {
                ["-virtfs", "local,path=\(path),mount_tag=\(tag),security_model=none,multidevs=remap"]
            }
            let layers = setup == .service ? serviceLayers.flatMap { share($0.path, as: $0.tag) } : []
            return options + ["-machine", "q35", "-m", "\(Self.memory)"] + share(directory.path, as: Self.sharedTag)
                + layers
        }
        guard setup == .persistent else {
            return options + ["-no-reboot", "-machine", "q35", "-m", "\(Self.memory)"]
        }
        try? FileManager.default.removeItem(atPath: directory.file("pmem.img"))
        let pmem = try directory.writeSparse("pmem.img", size: LabStorage.memorySize)
        return options + [
            "-machine", "q35,nvdimm=on", "-m", "\(Self.memory),slots=2,maxmem=16G", "-device", "nvdimm,memdev=pmem",
            "-object",
            "memory-backend-file,id=pmem,share=on,align=2M,mem-path=\(pmem),size=\(LabStorage.memorySize)",
        ]
    }

    private var consoleLog: String { directory.file("console.log") }

    /// The last that the lab's kernel said.
    private var consoleTail: String {
        let text = String(decoding: FileManager.default.contents(atPath: consoleLog) ?? Data(), as: UTF8.self)
        return text.split(separator: "\n").suffix(15).joined(separator: "\n")
    }

    private static func path(of program: String) throws -> String {
        guard let path = Tool.find(program) else { throw Failure("\(program): not found") }
        return path
    }

    private func makeInitrd(_ command: [String]) throws -> String {
        func contents(_ path: String) throws -> Data { try Data(contentsOf: URL(fileURLWithPath: path)) }
        var archive = CpioArchive()
        for name in ["bin", "modules"] { archive.addDirectory(name) }
        archive.addFile("bin/busybox", mode: 0o755, contents: try contents(files.busybox))
        archive.addFile("init", mode: 0o755, contents: try contents("\(try GuestBuilder().sources)/lab/host.sh"))
        for (number, module) in try kernel.modules(Self.modules, busybox: files.busybox).enumerated() {
            archive.addFile("modules/\(number).ko", mode: 0o644, contents: module)
        }
        archive.addFile("command", mode: 0o644, contents: Data(script(command).utf8))
        if setup == .service {
            archive.addFile("service", mode: 0o644, contents: Data())
            try script(command).write(toFile: caseFile(Self.caseCommand), atomically: true, encoding: .utf8)
        }
        return try directory.write(Self.initrdName, archive.finished())
    }

    // MARK: Where systemd is the first process

    /// In the lab: the command, as a script.
    static let caseCommand = "/case-command"

    /// What the case puts over this machine's files and systemd's.
    func caseFile(_ path: String) -> String { "\(directory.path)/case\(path)" }

    private var serviceLayers: [(path: String, tag: String)] {
        [(files.systemd.root, "systemd"), (caseFile(""), "case")]
    }

    private func script(_ command: [String]) -> String {
        func quoted(_ word: String) -> String { "'" + word.replacingOccurrences(of: "'", with: "'\\''") + "'" }
        var lines = ["cd \(quoted(FileManager.default.currentDirectoryPath)) || exit 1", "export HOME=/root"]
        for name in ["PATH", "LD_LIBRARY_PATH"] {
            if let value = ProcessInfo.processInfo.environment[name] { lines.append("export \(name)=\(quoted(value))") }
        }
        return (lines + ["exec " + command.map(quoted).joined(separator: " ")]).joined(separator: "\n")
    }
}
