import ArgumentParser
import Foundation
import ProcessSupport

/// Whether Linux runs under KVM here. A KVM that can be opened may still be an emulation that lacks instructions, or
/// is too slow, so a tiny guest on the machine `microvm` tries what Linux needs (Tests/Guests/probe): long mode,
/// exceptions, the instructions that CPUID announces, user mode, timer interrupts and some speed. Takes 0.1 s.
struct KVMProbe {
    let vmm: String

    /// Seconds for the VMM to start, and for each of the guest's steps.
    private static let startLimit = 15.0, stepLimit = 10.0
    /// Seconds of the processor's time for each of the steps: a busy host is no slow KVM.
    private static let workLimit = 4.0
    /// Seconds beyond the limits for one that has worked for so many: it waits for a processor, and for nothing else.
    private static let busyLimit = 60.0, leastWork = 0.2
    /// How many the step "speed" executes. Linux needs thousands of millions to start.
    private static let speedInstructions = 20_000_000

    /// Why Linux does not run under KVM here, as a sentence's beginning; nil if it does.
    /// - Throws: if it cannot be tried.
    func problem() throws -> String? {
        #if arch(x86_64)
        let path = "/dev/kvm"
        let fd = open(path, O_RDWR | O_CLOEXEC)
        guard fd >= 0 else { return "there is no KVM here (\(path): \(String(cString: strerror(errno))))" }
        close(fd)
        let directory = try TemporaryDirectory.scratch()
        let image = directory.file("probe")
        try GuestBuilder().build(.probe, to: image)
        return try failure(image: image, directory: directory).map { "KVM here cannot run Linux: \($0)" }
        #else
        return "there is no x86-64 KVM here"
        #endif
    }

    private func failure(image: String, directory: TemporaryDirectory) throws -> String? {
        let process = try VMMProcess(
            [
                vmm, "-name", "baton-demo-probe", "-machine", "microvm", "-accel", "kvm", "-cpu", "host", "-m", "64M",
                "-kernel", image, "-nodefaults", "-nographic", "-serial", "stdio", "-monitor", "none", "-no-reboot",
            ], log: directory.file("vmm.log"))
        let console = GuestConsole(process: process, log: directory.file("console.log"))
        var step: String?, isAtEnd = false, wrong: String?
        var deadline = Clock.now + Self.startLimit, workBefore = 0.0
        console.onLine = { line in
            let marker = "baton-probe: "
            guard line.hasPrefix(marker) else { return }
            let text = String(line.dropFirst(marker.count))
            if text == "end" {
                isAtEnd = true
            } else if text.hasPrefix("wrong: ") {
                wrong = String(text.dropFirst("wrong: ".count))
            } else {
                step = text
                deadline = Clock.now + Self.stepLimit
                workBefore = Self.processorTime(of: process.pid)
            }
        }
        while true {
            console.drain()
            if isAtEnd { return nil }
            if let wrong { return wrong }
            let place = step.map { "the test of \($0)" } ?? "the start of a guest"
            let isRunning = process.isRunning
            if let error = Self.error(in: process.log, after: isRunning ? "baton: CPU 0: " : "baton: ") {
                return "\(place) ended with: \(error)"
            }
            guard isRunning else { return "\(place) ended at once" }
            let work = Self.processorTime(of: process.pid) - workBefore
            let isSlow = work >= Self.workLimit
            // One that works, and has a part of a processor only, gets to the limit of its work.
            let isLate = Clock.now >= deadline + (work > Self.leastWork ? Self.busyLimit : 0)
            guard !isLate, !isSlow else {
                let perSecond = Self.speedInstructions / Int(Self.workLimit) / 1_000_000
                return isSlow && step == "speed"
                    ? "it executes fewer than \(perSecond) million instructions in a second" : "\(place) has no end"
            }
            var descriptors = [pollfd(fd: console.descriptor, events: Int16(POLLIN), revents: 0)]
            poll(&descriptors, 1, 20)
        }
    }

    /// Seconds that a process has used, a guest's among them (proc_pid_stat(5): utime, stime).
    private static func processorTime(of pid: pid_t) -> Double {
        let text = (try? String(contentsOfFile: "/proc/\(pid)/stat", encoding: .utf8)) ?? ""
        // The name before, in parentheses, may have spaces.
        let fields = text[(text.lastIndex(of: ")") ?? text.startIndex)...].split(separator: " ")
        guard fields.count > 13, let user = Double(fields[12]), let system = Double(fields[13]) else { return 0 }
        return (user + system) / Double(sysconf(Int32(_SC_CLK_TCK)))
    }

    /// The first that the VMM said about itself, or about a CPU that KVM gave up: it stays then.
    private static func error(in log: String, after prefix: String) -> String? {
        let messages = (try? String(contentsOfFile: log, encoding: .utf8)) ?? ""
        guard let start = messages.range(of: prefix)?.upperBound else { return nil }
        return String(messages[start...].prefix { $0 != "\n" && $0 != ";" })
    }
}

/// `baton-demo kvm`: what decides on the machine that `baton-demo run` shows.
struct KVMCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "kvm", abstract: "Says whether Linux runs under KVM here; status 1 if not.")

    @Option(help: "The VMM to run (default: baton beside this program).")
    var vmm: String?

    func run() throws {
        if let problem = try KVMProbe(vmm: try RunCommand.locate(vmm: vmm)).problem() { throw Failure(problem) }
        print("Linux runs under KVM here")
    }
}
