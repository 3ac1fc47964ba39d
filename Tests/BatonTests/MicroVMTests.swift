import Foundation
import TestSupport
import Testing

/// The machine `microvm` on KVM, as its users start it: with guests of a few instructions, as a /dev/kvm may be an
/// emulation that runs no others.
@Suite(.serialized, .enabled(if: MicroVMROM.isUsable, MicroVMROM.usable)) struct MicroVMTests {
    @Test("Writes to ports reach their devices, and one ends the VMM")
    func ports() throws {
        var code: [UInt8] = [0xba, 0xf8, 0x03]  // mov dx, 0x3f8
        for byte in "ports\n".utf8 { code += [0xb0, byte, 0xee] }  // mov al, byte; out dx, al
        code += [0xba, 0x01, 0x05, 0xb0, 21, 0xee, 0xf4]  // mov dx, 0x501; mov al, 21; out dx, al; hlt
        let rom = try MicroVMROM(code)
        let process = try ChildProcess(rom.arguments)
        #expect(try process.waitForExit() == .status(43), "\(process.report)")
        #expect(rom.output == "ports\n")
    }

    /// Where Debian's package puts SeaBIOS for this machine.
    private static let seabios = "/usr/share/seabios/bios-microvm.bin"

    @Test(
        "SeaBIOS boots a disk, whose guest goes on over updates",
        .enabled(if: access(seabios, R_OK) == 0, "needs Debian's seabios"))
    func seabios() throws {
        let directory = try TemporaryDirectory()
        var disk = Data(count: 1 << 20)
        disk.replaceSubrange(0..<MicroVMROM.letters.count, with: MicroVMROM.letters)
        disk.replaceSubrange(510..<512, with: [0x55, 0xaa] as [UInt8])
        let image = try directory.write("disk", disk)
        let serial = directory.file("serial")
        let command = [
            Products.baton, "-M", "microvm", "-m", "64M", "-bios", Self.seabios, "-nodefaults",
            "-drive", "file=\(image),format=raw,if=none,id=d", "-device", "virtio-blk-device,drive=d",
            "-serial", "file:\(serial)", "-qmp", "unix:\(directory.file("qmp")),server=on,wait=off", "-sandbox",
            "paths=\(directory.path)",
            "-cpr-enable", "restart",
        ]
        let process = try ChildProcess(command)
        let qmp = try QMPClient(path: directory.file("qmp"), of: process)
        /// What the boot sector has written. SeaBIOS may still owe dots of its own line.
        func letters() throws -> [UInt8] {
            let text = try Data(contentsOf: URL(fileURLWithPath: serial))
            guard let start = text.range(of: Data("Hard Disk".utf8)) else { return [] }
            return text[start.upperBound...].filter { $0 >= UInt8(ascii: "a") && $0 <= UInt8(ascii: "z") }
        }
        try eventually("the boot sector runs") { try letters().count > 5 }
        for _ in 0..<3 {
            let before = try letters().count
            try qmp.execute("cpr-update", ["argv": command])
            try eventually("it goes on") { try letters().count > before + 5 }
        }
        try qmp.execute("quit")
        #expect(try process.waitForExit() == .status(0))
        let all = try letters()
        for (index, letter) in all.enumerated() { #expect(letter == UInt8(ascii: "a") + UInt8(index % 26)) }
    }

    @Test("After an internal error of KVM's the guest runs only after a reset")
    func internalError() throws {
        // To protected mode by a GDT at 0x50, and to an address without memory, from which nothing can be executed.
        var code: [UInt8] = [
            0xfa, 0x2e, 0x66, 0x0f, 0x01, 0x16, 0x40, 0x00,  // cli; lgdt cs:[0x40]
            0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0,  // mov eax, cr0; or al, 1; mov cr0, eax
            0x66, 0xea, 0x20, 0x00, 0x0f, 0x00, 0x08, 0x00,  // jmp 8:0xf0020
        ]
        code += [UInt8](repeating: 0, count: 0x20 - code.count)
        code += [0xb8, 0x00, 0x00, 0x00, 0xd0, 0xff, 0xe0]  // mov eax, 0xd0000000; jmp eax
        code += [UInt8](repeating: 0, count: 0x40 - code.count)
        code += [0x0f, 0x00, 0x50, 0x00, 0x0f, 0x00]  // the GDT's limit and address
        code += [UInt8](repeating: 0, count: 0x58 - code.count)
        code += [0xff, 0xff, 0x00, 0x00, 0x00, 0x9a, 0xcf, 0x00]  // code of 4 GiB
        let rom = try MicroVMROM(code)
        let process = try ChildProcess(rom.arguments)
        let qmp = try QMPClient(path: rom.directory.file("qmp"), of: process)
        func expectRefusal() {
            #expect(refusal { try qmp.execute("cont") } == "Resetting the Virtual Machine is required")
        }
        try eventually("KVM gives up") { try qmp.status() == "internal-error" }
        #expect(process.errors.contains("KVM internal error"), "\(process.errors)")
        expectRefusal()
        try qmp.execute("cpr-update", ["argv": rom.arguments])
        #expect(try qmp.status() == "internal-error")
        expectRefusal()
        try qmp.execute("cpr-save", ["filename": rom.directory.file("state"), "mode": "restart"])
        #expect(try qmp.status() == "save-vm")
        expectRefusal()
        try qmp.execute("system_reset")
        try eventually("the machine is reset") { try qmp.status() == "prelaunch" }
        try qmp.execute("cont")
        try eventually("KVM gives up again") { try qmp.status() == "internal-error" }
        try qmp.execute("quit")
        #expect(try process.waitForExit() == .status(0))
    }

    @Test("KVM's device can be another file, which is KVM's and may be opened")
    func device() throws {
        let rom = try MicroVMROM([0xf4])
        // Of KVM's numbers, but root's alone.
        let node = rom.directory.file("kvm")
        func errors(_ device: String, _ rom: MicroVMROM, prefix: [String] = []) throws -> String {
            let process = try ChildProcess(prefix + rom.arguments(extra: ["-accel", "kvm,device=\(device)"]))
            #expect(try process.waitForExit() == .status(1), "\(process.report)")
            return process.errors
        }
        let absent = try errors(node, rom)
        #expect(absent.contains("Could not access KVM kernel module: \(node): No such file or directory"), "\(absent)")
        #expect(absent.contains("-accel kvm,device="))
        let wrong = try errors("/dev/null", rom)
        #expect(wrong.contains("/dev/null is not KVM: Inappropriate ioctl for device"), "\(wrong)")
        #expect(try errors("/dev/kvm,kernel-irqchip=off", rom).contains("'kernel-irqchip' does not accept value 'off'"))
        guard geteuid() == 0 else { return }
        var status = stat()
        #expect(stat("/dev/kvm", &status) == 0 && mknod(node, S_IFCHR | 0o600, status.st_rdev) == 0)
        // What root has written is not nobody's.
        let other = try MicroVMROM([0xf4])
        for directory in [rom.directory, other.directory] { chmod(directory.path, 0o777) }
        let nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
        let refused = try errors(node, other, prefix: nobody)
        #expect(refused.contains("Could not access KVM kernel module: \(node): Permission denied"), "\(refused)")
        #expect(refused.contains("Add the user to the group that \(node) belongs to"), "\(refused)")
        let process = try ChildProcess(rom.arguments(extra: ["-accel", "kvm,device=\(node),kernel-irqchip=on"]))
        let qmp = try QMPClient(path: rom.socket, of: process)
        #expect(try qmp.status() == "running")
        try qmp.execute("quit")
        #expect(try process.waitForExit() == .status(0))
    }

    /// The same guest with other CPUs: `-cpu`, `-smp`, and what the error says.
    private static let otherCPUs =
        [
            ("x86-64-v2", [], "the guest's CPU 0 is another than -cpu and -smp make here: CPUID["),
            ("host,-sse2", [], "the guest's CPU 0 is another than -cpu and -smp make here: CPUID[eax=01h].EDX"),
            ("host", ["-smp", "2"], "the guest's CPU 0 is another than -cpu and -smp make here: CPUID["),
        ] as [(String, [String], String)]

    @Test("An update to other CPUs is refused, and the guest goes on", arguments: otherCPUs, [true, false])
    func otherCPU(_ other: (cpu: String, words: [String], text: String), preflight: Bool) throws {
        let rom = try MicroVMROM(MicroVMROM.letters)
        let process = try ChildProcess(rom.arguments)
        let qmp = try QMPClient(path: rom.socket, of: process)
        try rom.awaitOutput()
        let argv = rom.arguments(cpu: other.cpu, extra: other.words)
        let text = refusal { try qmp.execute("cpr-update", ["argv": argv, "preflight": preflight]) }
        #expect(text.contains(other.text), "\(text)")
        #expect(try qmp.status() == "running")
        try rom.awaitOutput()
        try qmp.execute("cpr-update", ["argv": rom.arguments])
        try rom.awaitOutput()
        try qmp.execute("quit")
        #expect(try process.waitForExit() == .status(0))
    }

    @Test("A checkpoint of another CPU is refused by name, and stays good for the right one")
    func otherCheckpoint() throws {
        let rom = try MicroVMROM(MicroVMROM.letters)
        let first = try ChildProcess(rom.arguments(mode: "reboot"))
        let source = try QMPClient(path: rom.socket, of: first)
        try rom.awaitOutput()
        let file: [String: Any] = ["filename": rom.directory.file("state"), "mode": "reboot"]
        try source.execute("cpr-save", file)
        try source.execute("quit")
        #expect(try first.waitForExit() == .status(0))
        func load(_ cpu: String) throws -> (ChildProcess, QMPClient, String) {
            let process = try ChildProcess(rom.arguments(cpu: cpu, mode: "reboot", extra: ["-S"]))
            let qmp = try QMPClient(path: rom.socket, of: process)
            return (process, qmp, refusal { try qmp.execute("cpr-load", file) })
        }
        let (wrong, client, text) = try load("x86-64-v2")
        #expect(text.contains("the guest's CPU 0 is another than -cpu and -smp make here: CPUID["), "\(text)")
        try client.execute("quit")
        #expect(try wrong.waitForExit() == .status(0))
        let (process, qmp, answer) = try load("host")
        #expect(answer == "accepted")
        try rom.awaitOutput()
        try qmp.execute("quit")
        #expect(try process.waitForExit() == .status(0))
    }

    @Test("What does not fit together is refused by name")
    func refusals() throws {
        let rom = try MicroVMROM([0xf4])
        let kernel = try rom.directory.write("kernel", Data("no kernel of any kind".utf8))
        for (words, text) in [
            (["-M", "microvm", "-accel", "tcg"], "machine 'microvm' cannot run on accelerator 'tcg'"),
            (["-M", "virt", "-accel", "kvm"], "machine 'virt' cannot run on accelerator 'kvm'"),
            (["-M", "microvm", "-dtb", rom.path], "has no device tree"),
            (["-M", "microvm", "-smp", "500"], "Invalid SMP CPUs 500. The max CPUs supported by machine 'microvm' is"),
            (["-M", "microvm,acpi=off,pcie=on"], "no pcie=on with acpi=off"),
            (["-M", "microvm,x=y"], "Property 'microvm-machine.x' not found"),
            (["-M", "microvm", "-cpu", "nothing"], "unable to find CPU model 'nothing'"),
            (["-M", "microvm", "-kernel", kernel], "could not load kernel '\(kernel)'"),
            (["-M", "microvm"], "there is nothing to start from"),
        ] as [([String], String)] {
            let process = try ChildProcess([Products.baton, "-nodefaults", "-m", "16M"] + words)
            #expect(try process.waitForExit() == .status(1), "\(words): \(process.report)")
            #expect(process.errors.contains(text), "\(words): \(process.errors)")
        }
    }
}
