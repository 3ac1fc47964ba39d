import BatonRuntime
import VirtBoard

/// What `-machine`, `-accel`, `-cpu` and `-smp` say.
struct MachineOptions {
    var memoryBackend: String?
    var dumpDTB: String?
    var mergeMemory = true
    var dumpGuestCore = true
    var hartCount = 1
    /// Memory that no option names is shared, and so outlives an exec.
    var sharesAuxiliaryRAM = false
    var aia = AIA.none

    init(_ invocation: Invocation) throws(VMMError) {
        for text in invocation.all("machine") {
            let options = try KeyValueOptions(text, impliedKey: "type")
            if let type = try options.string("type") { try MachineOptions.check(machine: type) }
            memoryBackend = try options.string("memory-backend") ?? memoryBackend
            dumpDTB = try options.string("dumpdtb") ?? dumpDTB
            mergeMemory = try options.bool("mem-merge") ?? mergeMemory
            dumpGuestCore = try options.bool("dump-guest-core") ?? dumpGuestCore
            sharesAuxiliaryRAM = try options.bool("aux-ram-share") ?? sharesAuxiliaryRAM
            if let accel = try options.string("accel") { try MachineOptions.checkAccelerator(accel) }
            if let text = try options.string("aia") {
                guard let type = AIA(rawValue: text) else {
                    throw VMMError(
                        "Invalid AIA interrupt controller type", hint: "Valid values are none, aplic, and aplic-imsic.")
                }
                aia = type
            }
            if let text = try options.string("aia-guests"), SizeText.unsignedNumber(text) != 0 {
                throw VMMError(
                    "Invalid number of AIA IMSIC guests",
                    hint: "Valid values be between 0 and 0: there is no hypervisor extension.")
            }
            _ = try options.enumeration("usb", ["off"])
            try options.finish()
        }
        for text in invocation.all("accel") {
            let options = try KeyValueOptions(text, impliedKey: "accel")
            try MachineOptions.checkAccelerator(try options.requiredString("accel"))
            _ = try options.string("thread")
            try options.finish()
        }
        if let cpu = invocation.last("cpu") { try MachineOptions.check(cpu: cpu) }
        for text in invocation.all("smp") {
            let options = try KeyValueOptions(text, impliedKey: "cpus")
            hartCount = Int(try options.number("cpus", in: 1...8) ?? UInt64(hartCount))
            for key in ["sockets", "cores", "threads", "maxcpus", "dies", "clusters"] { _ = try options.number(key) }
            try options.finish()
        }
    }

    static let accelerator = "tcg"
    static let cpus = ["rv64", "max"]

    static func check(machine type: String) throws(VMMError) {
        guard type == "virt" else {
            throw VMMError(
                "unsupported machine type: \"\(type)\"", hint: "Use -machine help to list supported machines")
        }
    }

    static func check(cpu: String) throws(VMMError) {
        guard cpus.contains(cpu) else {
            throw VMMError("unable to find CPU model '\(cpu)'", hint: "Models: \(cpus.joined(separator: ", ")).")
        }
    }

    /// A list such as `kvm:tcg` names what to try in turn.
    static func checkAccelerator(_ list: String) throws(VMMError) {
        for name in list.split(separator: ":") where name == MachineOptions.accelerator { return }
        throw VMMError("invalid accelerator \(list)", hint: "Accelerators: tcg.")
    }
}
