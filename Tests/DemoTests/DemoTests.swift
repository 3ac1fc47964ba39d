import Foundation
import FoundationXML
import TestSupport
import Testing

/// Why Debian's files are not in the project's cache; empty when they are. Downloaded by the first test that asks.
private let debianProblem: String = {
    do {
        let fetch = try ChildProcess([demo, "fetch", "--cache", cache])
        return try fetch.waitForExit(by: .seconds(600)) == .status(0) ? "" : fetch.errors
    } catch {
        return "\(error)"
    }
}()
let debianIsAvailable = debianProblem.isEmpty
let demo = "\(Products.directory)/baton-demo"
let cache = "\(Products.repository)/.cache"
/// Why Linux does not run under KVM here, or is not to be had for it; empty when it does.
private let x86Problem: String = {
    do {
        for command in [["kvm"], ["fetch", "--machine", "microvm", "--cache", cache]] {
            let process = try ChildProcess([demo] + command)
            guard try process.waitForExit(by: .seconds(600)) == .status(0) else { return process.errors }
        }
        return ""
    } catch {
        return "\(error)"
    }
}()
private let openSBI = "/usr/lib/riscv64-linux-gnu/opensbi/generic/fw_dynamic.bin"
// .ci/run looks for these words.
let missingDebian = Comment(
    rawValue: "Debian's kernel is neither in the cache nor to be downloaded: "
        + debianProblem.split(separator: "\n").prefix(3).joined(separator: " "))

private enum KVMHost {
    static let exists = access("/dev/kvm", R_OK | W_OK) == 0
}

/// `make run`, from end to end.
@Suite(.serialized, .enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain"))
struct DemoTests {
    @discardableResult
    private func demonstrate(_ options: [String], restarts: Int = 3) throws -> String {
        let output = try ChildProcess.run(
            [demo, "run", "--batch", "--restarts", "\(restarts)", "--cache", cache, "--boot-timeout", "600"]
                + (options.contains("--machine") ? [] : ["--machine", "virt"]) + options,
            by: .seconds(900))
        let lines = output.split(separator: "\n").filter { $0.hasPrefix("restart ") }
        #expect(lines.count == restarts)
        for line in lines { #expect(line.contains("(same)") && line.contains("memory intact")) }
        #expect(output.contains("\(restarts) restarts, nothing lost"))
        return output
    }

    @Test func aCountingGuestLosesNothingInSupervisorMode() throws {
        try demonstrate(["--guest", "counter"])
    }

    @Test func aCountingGuestLosesNothingInMachineMode() throws {
        try demonstrate(["--guest", "counter", "--bios", "none"])
    }

    @Test(.enabled(if: debianIsAvailable, missingDebian))
    func debianLosesNothing() throws {
        let output = try demonstrate(["--guest", "debian"])
        #expect(output.contains("disk intact"))
        #expect(output.contains("the guest's shell answers"))
    }

    @Test(
        .enabled(if: debianIsAvailable, missingDebian),
        .enabled(if: FileManager.default.fileExists(atPath: openSBI), "Debian's opensbi is not installed"))
    func debianLosesNothingUnderOpenSBI() throws {
        let output = try demonstrate(["--guest", "debian", "--bios", openSBI])
        #expect(output.contains("disk intact"))
    }

    /// The disk's interrupts go by INTx and the PLIC, and by MSI-X through the
    /// IMSIC, while the VMM is replaced.
    @Test(.enabled(if: debianIsAvailable, missingDebian), arguments: ["none", "aplic-imsic"])
    func debianLosesNothingOnPCI(_ aia: String) throws {
        let output = try demonstrate(["--guest", "debian", "--pci", "--aia", aia], restarts: 2)
        #expect(output.contains("disk intact"))
    }

    @Test(
        .enabled(if: x86Problem.isEmpty, Comment(rawValue: String(x86Problem.prefix { $0 != "\n" }))),
        arguments: [[], ["--pci"]])
    func debianLosesNothingUnderKVM(_ options: [String]) throws {
        let output = try demonstrate(["--machine", "microvm"] + options)
        #expect(output.contains("booting Debian's amd64 kernel"))
        #expect(output.contains("disk intact"))
        #expect(output.contains("the guest's shell answers"))
    }

    /// The VMMs start no guest, as on a host whose KVM is another's, or one that does not get to its end.
    @Test(arguments: [
        ("echo 'baton: ioctl(KVM_CREATE_VM) failed: Device or resource busy' >&2; exit 1", "Device or resource busy"),
        ("echo 'baton-probe: SSE'; echo 'baton: CPU 0: KVM internal error; data' >&2; exec sleep 60", "of SSE ended"),
        ("echo 'baton-probe: user mode'; exec sleep 60", "user mode has no end"),
        ("echo 'baton-probe: speed'; while :; do :; done", "fewer than 5 million instructions"),
        ("echo 'baton-probe: wrong: SYSRET does not lead to user mode'; exec sleep 60", "SYSRET"),
    ])
    func aKVMThatCannotRunLinuxIsTold(_ script: String, _ reason: String) throws {
        let directory = try TemporaryDirectory()
        let vmm = try directory.write("vmm", "#!/bin/sh\n\(script)\n")
        #expect(chmod(vmm, 0o755) == 0)
        let check = try ChildProcess([demo, "kvm", "--vmm", vmm])
        #expect(try check.waitForExit() == .status(1), "\(check.report)")
        #expect(check.errors.contains(KVMHost.exists ? reason : "there is no KVM here"), "\(check.report)")
        #expect(check.errors.split(separator: "\n").count == 1, "\(check.report)")
    }

    /// One who insists on the machine has the reason as an error, and is told of the other one.
    @Test func microvmWithoutKVMIsAnError() throws {
        let run = try ChildProcess([demo, "run", "--batch", "--machine", "microvm", "--vmm", "/bin/false"])
        #expect(try run.waitForExit() == .status(1), "\(run.report)")
        #expect(run.errors.contains("; MACHINE=virt shows a riscv64 guest on any host"), "\(run.report)")
    }

    @Test(arguments: [["--guest", "counter"], ["--bios", "none"], ["--aia", "aplic"]])
    func microvmHasNothingOfTheOtherMachines(_ options: [String]) throws {
        let run = try ChildProcess([demo, "run", "--batch", "--machine", "microvm"] + options)
        #expect(try run.waitForExit() == .status(1))
        #expect(run.errors.contains("are for the machine virt"), "\(run.report)")
    }

    /// What `make bench` draws is XML, and has the figures in it.
    @Test func aPictureOfAnUpdateIsDrawn() throws {
        let directory = try TemporaryDirectory(), file = directory.file("update.svg")
        _ = try ChildProcess.run([demo, "bench", "--picture-only", "--repetitions", "3", "--picture", file])
        let text = try String(contentsOfFile: file, encoding: .utf8)
        #expect(text.hasPrefix("<svg ") && text.hasSuffix("</svg>\n"))
        let reader = try SVGReader(text)
        #expect(reader.words.contains("old VMM") && reader.words.contains("new VMM") && reader.words.contains("guest"))
        // Parts that are too narrow have no words: on a busy host one may take nearly all of the pause.
        #expect(reader.words.contains { $0.hasSuffix(" us") }, "the parts of the pause: \(reader.words)")
        // Within the picture.
        #expect(
            reader.bars.count > 8 && reader.bars.allSatisfy { $0.x >= 0 && $0.width > 0 && $0.x + $0.width <= 840.1 })
    }

    @Test func withoutNetworkTheBareMetalGuestRuns() throws {
        let empty = try TemporaryDirectory()
        let output = try ChildProcess.run(
            [demo, "run", "--batch", "--restarts", "1", "--cache", empty.path],
            environment: ["http_proxy": "http://127.0.0.1:1", "https_proxy": "http://127.0.0.1:1"])
        #expect(output.contains("a bare-metal guest of our own counts instead"))
        #expect(output.contains("1 restart, nothing lost"))
    }

    /// A version that is in the cache needs no archive, and one that cannot be reached is no reason to go without.
    @Test func withoutNetworkTheCachedVersionIsUsed() throws {
        let cache = try TemporaryDirectory()
        for version in ["20250803+deb13u9", "20250803+deb13u10"] {
            let directory = cache.file("debian-13-riscv64/\(version)")
            try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: true)
            for file in ["linux", "initrd.gz", "virtio_blk.ko.xz"] {
                try cache.write("debian-13-riscv64/\(version)/\(file)", "")
            }
        }
        // One that was not unpacked to its end does not count.
        try FileManager.default.createDirectory(
            atPath: cache.file("debian-13-riscv64/20250803+deb13u11"), withIntermediateDirectories: false)
        let noNetwork = ["http_proxy": "http://127.0.0.1:1", "https_proxy": "http://127.0.0.1:1"]
        let fetch = [demo, "fetch", "--cache", cache.path]
        let found = try ChildProcess.run(fetch, environment: noNetwork)
        #expect(found.hasPrefix("version 20250803+deb13u10\n"), "\(found)")
        let newest = try ChildProcess.run(fetch + ["--newest"], environment: noNetwork)
        #expect(newest.contains("Debian's installer 20250803+deb13u10 of the cache is used"), "\(newest)")
        #expect(newest.contains("\nversion 20250803+deb13u10\n"), "\(newest)")
        let check = try ChildProcess(fetch + ["--check"], environment: noNetwork)
        #expect(try check.waitForExit() == .status(1))
    }

    @Test func aVMMThatEndsIsReported() throws {
        let run = try ChildProcess([demo, "run", "--batch", "--guest", "counter", "--vmm", "/bin/false"])
        #expect(try run.waitForExit() == .status(1))
        #expect(run.errors.contains("ended with status 1"))
    }

    @Test func anInterruptedDemonstrationEndsItsVMM() throws {
        let run = try ChildProcess([demo, "run", "--batch", "--guest", "counter", "--restarts", "1000"])
        try run.waitForOutput("restart 1: PID ")
        let line = run.output.split(separator: "\n").first { $0.hasPrefix("restart 1: PID ") } ?? ""
        let pid = try #require(pid_t(line.split(separator: " ")[3]))
        #expect(kill(pid, 0) == 0)
        run.signal(SIGTERM)
        #expect(try run.waitForExit() == .status(1), "\(run.report)")
        #expect(run.errors.contains("interrupted"))
        #expect(kill(pid, 0) == -1)
    }
}

/// The words and bars of an SVG.
private final class SVGReader: NSObject, XMLParserDelegate {
    private(set) var words: [String] = []
    private(set) var bars: [(x: Double, width: Double)] = []
    private var text: String?

    init(_ svg: String) throws {
        super.init()
        let parser = XMLParser(data: Data(svg.utf8))
        parser.delegate = self
        guard parser.parse() else { throw Failure("not XML: \(parser.parserError.map { "\($0)" } ?? "")") }
    }

    func parser(
        _ parser: XMLParser, didStartElement name: String, namespaceURI: String?, qualifiedName: String?,
        attributes: [String: String]
    ) {
        if name == "text" { text = "" }
        if name == "rect", let width = attributes["width"].flatMap(Double.init) {
            bars.append((attributes["x"].flatMap(Double.init) ?? 0, width))
        }
    }

    func parser(_ parser: XMLParser, foundCharacters characters: String) { text?.append(characters) }

    func parser(_ parser: XMLParser, didEndElement name: String, namespaceURI: String?, qualifiedName: String?) {
        if name == "text", let text { words.append(text) }
        text = nil
    }
}
