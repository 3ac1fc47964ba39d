import Foundation
import TestSupport
import Testing

/// A KVM that is older, lacks something, fails, or meets what it cannot run: `kvm-faults` answers in its place.
@Suite(.serialized, .enabled(if: MicroVMROM.isUsable, MicroVMROM.usable))
struct KVMFaultTests {
    /// A VM whose KVM has faults while there is a file.
    private final class FaultyVM {
        let rom: MicroVMROM
        let process: ChildProcess
        let qmp: QMPClient
        private let file: String

        init(_ faults: [String], words: [String] = [], mode: String = "restart") throws {
            rom = try MicroVMROM(MicroVMROM.letters)
            file = rom.directory.file("faults")
            process = try ChildProcess(
                KVMFaultTests.faults(faults + ["--when", file, "--log", rom.directory.file("log")])
                    + rom.arguments(mode: mode, extra: words))
            qmp = try QMPClient(path: rom.socket, of: process)
        }

        func begin() throws { try rom.directory.write("faults", Data()) }
        func end() { unlink(file) }
        /// How often something was answered in the kernel's place.
        var count: Int {
            ((try? String(contentsOfFile: rom.directory.file("log"), encoding: .utf8)) ?? "").split(separator: "\n")
                .count
        }

        func quit() throws {
            try qmp.execute("quit")
            #expect(try process.waitForExit() == .status(0), "\(process.report)")
        }
    }

    private static func faults(_ options: [String]) -> [String] {
        ["\(Products.directory)/kvm-faults"] + options + ["--"]
    }

    private static func answer(_ request: String, _ value: Int) -> [String] { ["--answer", "\(request)=\(value)"] }
    private static func capability(_ number: Int, _ value: Int) -> [String] { ["--capability", "\(number)=\(value)"] }

    private static func errors(_ faults: [String], _ words: [String] = []) throws -> String {
        let rom = try MicroVMROM([0xf4])
        let process = try ChildProcess(Self.faults(faults) + rom.arguments(extra: words))
        #expect(try process.waitForExit() == .status(1), "\(process.report)")
        return process.errors
    }

    /// By their numbers in linux/kvm.h.
    private static let required = [
        ("IRQCHIP", 0), ("USER_MEMORY", 3), ("SET_TSS_ADDR", 4), ("EXT_CPUID", 7), ("MP_STATE", 14),
        ("DESTROY_MEMORY_REGION_WORKS", 21), ("IRQ_ROUTING", 25), ("IRQFD", 32), ("IOEVENTFD", 36),
        ("SET_IDENTITY_MAP_ADDR", 37), ("ADJUST_CLOCK", 39), ("VCPU_EVENTS", 41), ("DEBUGREGS", 50), ("XSAVE", 55),
        ("XCRS", 56), ("GET_TSC_KHZ", 61), ("SIGNAL_MSI", 77), ("READONLY_MEM", 81), ("IMMEDIATE_EXIT", 136),
    ]

    @Test("A capability that nothing goes without is named, with what has it", arguments: required)
    func lacking(_ capability: (name: String, number: Int)) throws {
        let errors = try Self.errors(Self.capability(capability.number, 0))
        #expect(errors.contains("kvm does not support KVM_CAP_\(capability.name)"), "\(errors)")
        #expect(errors.contains("Linux 4.12 or later"), "\(errors)")
    }

    /// What KVM answers, the command line besides, what the error says, and what it says to do.
    private static let starts: [(faults: [String], words: [String], text: String, advice: String)] = [
        (answer("KVM_GET_API_VERSION", 11), [], "kvm version too old (11, not 12)", "-machine virt -accel tcg"),
        (answer("KVM_GET_API_VERSION", 13), [], "kvm version not supported (13, not 12)", "-machine virt -accel tcg"),
        (
            answer("KVM_CREATE_VM", -16), [], "ioctl(KVM_CREATE_VM) failed: Device or resource busy",
            "Another hypervisor"
        ),
        (answer("KVM_CREATE_VM", -12), [], "ioctl(KVM_CREATE_VM) failed: Cannot allocate memory", ""),
        (answer("KVM_CREATE_VCPU", -12), [], "KVM_CREATE_VCPU of CPU 0 failed: Cannot allocate memory", ""),
        (answer("KVM_CREATE_IRQCHIP", -12), [], "KVM_CREATE_IRQCHIP failed: Cannot allocate memory", ""),
        (
            answer("KVM_CREATE_IRQCHIP", -25), [], "KVM_CREATE_IRQCHIP failed: Inappropriate ioctl for device",
            "built with KVM_IOAPIC"
        ),
        (answer("KVM_SET_CPUID2", -22), [], "KVM_SET_CPUID2 failed: Invalid argument", ""),
        (answer("KVM_GET_SUPPORTED_CPUID", -12), [], "KVM_GET_SUPPORTED_CPUID failed: Cannot allocate memory", ""),
        (answer("KVM_SET_USER_MEMORY_REGION", -12), [], "KVM_SET_USER_MEMORY_REGION of ", ""),
        (
            capability(10, 2), [], "KVM has no memory slot left for the memory at 0x",
            "Give the guest fewer pieces of memory"
        ),
        (
            capability(9, 2) + capability(66, 2), ["-smp", "4"],
            "Number of SMP cpus requested (4) exceeds the maximum cpus supported by KVM (2)",
            "Give a smaller number with -smp"
        ),
        // As the kernel answers itself.
        (
            answer("KVM_RUN", -14), ["-m", "64T"], "cannot set up guest memory: KVM takes at most ",
            "Give less with -m."
        ),
    ]

    @Test("What a start does not get is named, with what to do", arguments: starts.indices)
    func start(_ index: Int) throws {
        let start = Self.starts[index]
        let errors = try Self.errors(start.faults, start.words)
        #expect(errors.contains(start.text), "\(errors)")
        #expect(errors.contains(start.advice) || start.advice.isEmpty, "\(errors)")
    }

    @Test("More CPUs than KVM recommends are a warning at the start, and none at an update")
    func recommended() throws {
        let rom = try MicroVMROM(MicroVMROM.letters)
        let words = rom.arguments(extra: ["-smp", "2"])
        let process = try ChildProcess(Self.faults(Self.capability(9, 1) + Self.capability(66, 4)) + words)
        let qmp = try QMPClient(path: rom.socket, of: process)
        for _ in 0..<2 {
            try rom.awaitOutput()
            let report = try #require(try qmp.execute("cpr-preflight", ["argv": words]) as? [String: Any])
            #expect(report["output"] as? String == "")
            try qmp.execute("cpr-update", ["argv": words])
        }
        let machines = try #require(try qmp.execute("query-machines") as? [[String: Any]])
        #expect(machines.first { $0["name"] as? String == "microvm" }?["acpi"] as? Bool == true)
        try qmp.execute("quit")
        #expect(try process.waitForExit() == .status(0), "\(process.report)")
        let text = "Number of SMP cpus requested (2) exceeds the recommended cpus supported by KVM (1)"
        #expect(process.errors.components(separatedBy: text).count == 2, "\(process.errors)")
    }

    @Test("Where no accelerator is left, the first one's reason is told")
    func noneLeft() throws {
        let errors = try Self.errors(Self.answer("KVM_CREATE_VM", -16), ["-accel", "kvm:tcg"])
        #expect(errors.contains("ioctl(KVM_CREATE_VM) failed: Device or resource busy"), "\(errors)")
    }

    /// What Linux got later than 4.12, or a processor may lack: KVM_CAP_TSC_DEADLINE_TIMER, IOEVENTFD_ANY_LENGTH,
    /// EXCEPTION_PAYLOAD, SREGS2, XSAVE2, PMU_CAPABILITY, X86_TRIPLE_FAULT_EVENT, MCE.
    private static let optional = [72, 122, 164, 200, 208, 212, 218, 31]

    @Test("Without what is newer a guest runs, and goes over updates")
    func oldKernel() throws {
        let rom = try MicroVMROM(MicroVMROM.letters)
        let process = try ChildProcess(
            Self.faults(Self.optional.flatMap { Self.capability($0, 0) }) + rom.arguments)
        let qmp = try QMPClient(path: rom.socket, of: process)
        try rom.awaitOutput()
        for _ in 0..<2 {
            try qmp.execute("cpr-update", ["argv": rom.arguments])
            try rom.awaitOutput()
        }
        try qmp.execute("quit")
        #expect(try process.waitForExit() == .status(0), "\(process.report)")
    }

    /// How KVM_RUN comes back, and what the log says of it.
    private static let exits: [(faults: [String], text: String)] = [
        (["--exit", "99"], "KVM: unknown exit, hardware reason 99"),
        (["--exit", "0"], "KVM: unknown exit, hardware reason 0"),
        (["--exit", "9:33"], "KVM: entry failed, hardware error 0x21"),
        (["--exit", "17:1"], "KVM internal error. Suberror: 1 (emulation failure)"),
        (["--exit", "17:3"], "KVM internal error. Suberror: 3 (an event during the delivery of another)"),
        (["--exit", "24:7"], "KVM: unexpected system event 7"),
        (answer("KVM_RUN", -14), "error: kvm run failed: Bad address (the guest's memory is not there)"),
        (answer("KVM_RUN", -12), "error: kvm run failed: Cannot allocate memory"),
    ]

    @Test("What KVM cannot run stops the VM, with registers in the log, until it is reset", arguments: exits.indices)
    func exits(_ index: Int) throws {
        let vm = try FaultyVM(Self.exits[index].faults, words: ["-smp", "2"])
        try vm.rom.awaitOutput()
        try vm.begin()
        try eventually("the VM stops; \(vm.process.report)") { try vm.qmp.status() == "internal-error" }
        let text = Self.exits[index].text
        #expect(vm.process.errors.contains(text), "\(vm.process.errors)")
        #expect(vm.process.errors.contains("RIP=") && vm.process.errors.contains("CR0="), "\(vm.process.errors)")
        #expect(refusal { try vm.qmp.execute("cont") } == "Resetting the Virtual Machine is required")
        vm.end()
        try vm.qmp.execute("system_reset")
        try eventually("the machine is reset") { try vm.qmp.status() == "prelaunch" }
        try vm.qmp.execute("cont")
        try vm.rom.awaitOutput()
        try vm.qmp.execute("cpr-update", ["argv": vm.rom.arguments(extra: ["-smp", "2"])])
        try vm.rom.awaitOutput()
        try vm.quit()
    }

    /// Requests of which each fails, in the new VMM of an update.
    private static let made = [
        "KVM_CREATE_VM", "KVM_SET_USER_MEMORY_REGION", "KVM_CREATE_IRQCHIP", "KVM_CREATE_PIT2", "KVM_CREATE_VCPU",
        "KVM_SET_CPUID2",
    ]
    /// The same, which the new VMM asks when it loads.
    private static let set = [
        "KVM_SET_REGS", "KVM_SET_XSAVE", "KVM_SET_XCRS", "KVM_SET_MSRS", "KVM_SET_VCPU_EVENTS", "KVM_SET_DEBUGREGS",
        "KVM_SET_LAPIC", "KVM_SET_MP_STATE", "KVM_SET_IRQCHIP", "KVM_SET_PIT2", "KVM_SET_CLOCK",
    ]
    /// The same, which the old VMM asks when it saves.
    private static let get = [
        "KVM_GET_REGS", "KVM_GET_XCRS", "KVM_GET_MSRS", "KVM_GET_VCPU_EVENTS", "KVM_GET_DEBUGREGS", "KVM_GET_LAPIC",
        "KVM_GET_MP_STATE", "KVM_GET_IRQCHIP", "KVM_GET_PIT2", "KVM_GET_CLOCK",
    ]

    @Test(
        "An update that KVM refuses something leaves the guest with the old VMM", arguments: made + set + get,
        [true, false])
    func update(_ request: String, preflight: Bool) throws {
        let vm = try FaultyVM(Self.answer(request, -22))
        try vm.rom.awaitOutput()
        try vm.begin()
        let update: [String: Any] = ["argv": vm.rom.arguments, "preflight": preflight]
        let text = refusal { try vm.qmp.execute("cpr-update", update) }
        vm.end()
        #expect(text.contains(request) && text.contains("Invalid argument"), "\(text)")
        #expect(vm.count > 0)
        #expect(try vm.qmp.status() == "running", "\(vm.process.report)")
        try vm.rom.awaitOutput()
        try vm.qmp.execute("cpr-update", update)
        try vm.rom.awaitOutput()
        // It is the process that the VM was started as, whichever VMM the update has failed in.
        try vm.quit()
        for (index, letter) in vm.rom.output.utf8.enumerated() {
            #expect(letter == UInt8(ascii: "a") + UInt8(index % 26), "byte \(index)")
        }
    }

    @Test("A state that KVM does not tell is not saved, and the guest can run on", arguments: get)
    func save(_ request: String) throws {
        let vm = try FaultyVM(Self.answer(request, -22), mode: "reboot")
        try vm.rom.awaitOutput()
        try vm.begin()
        let state = vm.rom.directory.file("state")
        let text = refusal { try vm.qmp.execute("cpr-save", ["filename": state, "mode": "reboot"]) }
        vm.end()
        #expect(text.contains(request) && text.contains("Invalid argument"), "\(text)")
        #expect(!FileManager.default.fileExists(atPath: state))
        #expect(try vm.qmp.status() == "running")
        try vm.rom.awaitOutput()
        try vm.quit()
    }
}
