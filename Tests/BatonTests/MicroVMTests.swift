import Foundation
import TestSupport
import Testing

/// The machine `microvm` on KVM, as its users start it: with guests of a few instructions, as a /dev/kvm may be an
/// emulation that runs no others.
@Suite(.serialized) struct MicroVMTests {
    /// Whether a machine can be made.
    static let isUsable: Bool = {
        guard access("/dev/kvm", R_OK | W_OK) == 0 else { return false }
        return (try? ROM([0xf4]).run(by: .seconds(20))) != nil
    }()

    /// Firmware of 64 KiB, whose code runs in real mode from its first byte on, with everything but CS as after a reset.
    private struct ROM {
        let directory: TemporaryDirectory
        let path: String

        /// - Parameter code: below 64 KiB less 16 bytes.
        init(_ code: [UInt8]) throws {
            directory = try TemporaryDirectory()
            var bytes = Data(count: 1 << 16)
            bytes.replaceSubrange(0..<code.count, with: code)
            // At 16 bytes below the end: a jump to the first byte.
            bytes.replaceSubrange(0xfff0..<0xfff3, with: [0xe9, 0x0d, 0x00] as [UInt8])
            path = try directory.write("rom", bytes)
        }

        var arguments: [String] {
            [
                Products.baton, "-M", "microvm", "-m", "16M", "-bios", path, "-nodefaults",
                "-serial", "file:\(directory.file("serial"))", "-device", "isa-debug-exit",
                "-qmp", "unix:\(directory.file("qmp")),server=on,wait=off", "-cpr-enable", "restart",
            ]
        }

        var output: String { (try? String(contentsOfFile: directory.file("serial"), encoding: .utf8)) ?? "" }

        /// Starts a VM, and ends it by a client.
        @discardableResult
        func run(by deadline: Deadline) throws -> ChildProcess {
            let process = try ChildProcess(arguments)
            let qmp = try QMPClient(path: directory.file("qmp"), of: process)
            try qmp.execute("quit")
            guard try process.waitForExit(by: deadline) == .status(0) else { throw TestError(process.report) }
            return process
        }
    }

    private static let usable: Comment = "needs a /dev/kvm that can be used"

    @Test("Writes to ports reach their devices, and one ends the VMM", .enabled(if: isUsable, usable))
    func ports() throws {
        var code: [UInt8] = [0xba, 0xf8, 0x03]  // mov dx, 0x3f8
        for byte in "ports\n".utf8 { code += [0xb0, byte, 0xee] }  // mov al, byte; out dx, al
        code += [0xba, 0x01, 0x05, 0xb0, 21, 0xee, 0xf4]  // mov dx, 0x501; mov al, 21; out dx, al; hlt
        let rom = try ROM(code)
        let process = try ChildProcess(rom.arguments)
        #expect(try process.waitForExit() == .status(43), "\(process.report)")
        #expect(rom.output == "ports\n")
    }

    /// Where Debian's package puts SeaBIOS for this machine.
    private static let seabios = "/usr/share/seabios/bios-microvm.bin"

    @Test(
        "SeaBIOS boots a disk, whose guest goes on over updates", .enabled(if: isUsable, usable),
        .enabled(if: access(seabios, R_OK) == 0, "needs Debian's seabios"))
    func seabios() throws {
        let directory = try TemporaryDirectory()
        var disk = Data(count: 1 << 20)
        disk.replaceSubrange(
            0..<19,
            with: [
                0xb0, 0x61,  // mov al, 'a'
                0xba, 0xf8, 0x03, 0xee,  // mov dx, 0x3f8; out dx, al
                0xb9, 0xff, 0xff, 0xe2, 0xfe,  // mov cx, 0xffff; loop to itself
                0xfe, 0xc0, 0x3c, 0x7b, 0x75, 0xf1, 0xeb, 0xed,  // inc al; to the out, after 'z' to the first
            ] as [UInt8])
        disk.replaceSubrange(510..<512, with: [0x55, 0xaa] as [UInt8])
        let image = try directory.write("disk", disk)
        let serial = directory.file("serial")
        let command = [
            Products.baton, "-M", "microvm", "-m", "64M", "-bios", Self.seabios, "-nodefaults",
            "-drive", "file=\(image),format=raw,if=none,id=d", "-device", "virtio-blk-device,drive=d",
            "-serial", "file:\(serial)", "-qmp", "unix:\(directory.file("qmp")),server=on,wait=off",
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

    @Test("After an internal error of KVM's the guest runs only after a reset", .enabled(if: isUsable, usable))
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
        let rom = try ROM(code)
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

    @Test("What does not fit together is refused by name", .enabled(if: isUsable, usable))
    func refusals() throws {
        let rom = try ROM([0xf4])
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
