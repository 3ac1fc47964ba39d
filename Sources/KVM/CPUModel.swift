import BatonRuntime

/// What `-cpu` says.
package struct CPUModel {
    /// `host`, `max` or a level.
    let name: String
    /// Flags that are on or off besides the model's, in the order in which they count.
    private(set) var flags: [(name: String, isOn: Bool)] = []
    /// To warn of what the host lacks, and to refuse it.
    private(set) var check = true
    private(set) var enforce = false
    /// To leave out what ties a guest to this host.
    private(set) var migratable = true
    /// Whether the guest is told that it runs on KVM.
    private(set) var kvm = true
    private(set) var modelID: String?

    var isHost: Bool { name == "host" || name == "max" }

    /// The levels of the x86-64 psABI (section 3.1.1), each with those below; and what a kernel takes for granted.
    private static let baseline =
        "fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2 syscall nx lm "
        + "x2apic tsc-deadline hypervisor arat kvmclock kvmclock-stable-bit kvm-nopiodelay kvm-pv-eoi"
    private static let levels = [
        "cx16 lahf-lm popcnt pni sse4.1 sse4.2 ssse3",
        "avx avx2 bmi1 bmi2 f16c fma abm movbe xsave",
        "avx512f avx512bw avx512cd avx512dq avx512vl",
    ]
    /// KVM's own flags do without a warning: not all hosts have all of them.
    static func isOptional(_ flag: String) -> Bool { flag.hasPrefix("kvm") }

    static let names = ["host", "max", "x86-64-v1", "x86-64-v2", "x86-64-v3", "x86-64-v4"]

    /// Flags of the model; nil for one that has all that the host does.
    var modelFlags: [Substring]? {
        guard !isHost, let level = name.utf8.last.map({ Int($0) - 0x30 }) else { return nil }
        let text = ([CPUModel.baseline] + CPUModel.levels.prefix(level - 1)).joined(separator: " ")
        return text.split(separator: " ")
    }

    /// What may follow a model's name.
    static var properties: [DeviceProperty] {
        [
            DeviceProperty("check", "bool", "warn of flags that the host lacks (on)"),
            DeviceProperty("enforce", "bool", "refuse to start without them (off)"),
            DeviceProperty("migratable", "bool", "leave out what ties a guest to this host (on)"),
            DeviceProperty("kvm", "bool", "tell the guest that it runs on KVM (on)"),
            DeviceProperty("model-id", "str", "the CPU's name"),
        ] + FeatureWord.names.map { DeviceProperty($0, "bool", "a flag of CPUID") }
    }

    /// - Throws: QEMU's error for a model, property or value that there is not.
    package init(_ text: String) throws(VMMError) {
        let parts = text.split(separator: ",", omittingEmptySubsequences: false).map(String.init)
        name = parts[0]
        guard CPUModel.names.contains(name) else {
            throw VMMError(
                "unable to find CPU model '\(name)'", hint: "There are: \(CPUModel.names.joined(separator: ", ")).")
        }
        var (plus, minus): ([String], [String]) = ([], [])
        for part in parts.dropFirst() {
            if part.hasPrefix("+") {
                plus.append(String(part.dropFirst()))
            } else if part.hasPrefix("-") {
                minus.append(String(part.dropFirst()))
            } else {
                let place = part.utf8.firstIndex(of: UInt8(ascii: "="))
                let key = place.map { String(part[..<$0]) } ?? part
                let value = place.map { String(part[part.index(after: $0)...]) } ?? "on"
                try set(key, value)
            }
        }
        // As in QEMU: these come last, whatever their place.
        for flag in plus { try set(flag, "on") }
        for flag in minus { try set(flag, "off") }
    }

    private mutating func set(_ key: String, _ value: String) throws(VMMError) {
        let property = "\(name)-x86_64-cpu.\(key)"
        if key == "model-id" {
            modelID = value
            return
        }
        func isOn() throws(VMMError) -> Bool {
            switch value {
            case "on", "yes", "true", "y": return true
            case "off", "no", "false", "n": return false
            default:
                throw VMMError("can't apply global \(property)=\(value): Parameter '\(key)' expects 'on' or 'off'")
            }
        }
        func require(_ wanted: Bool) throws(VMMError) {
            guard try isOn() != wanted else { return }
            throw VMMError("'\(property)=\(value)' is not supported: it is always \(wanted ? "on" : "off")")
        }
        switch key {
        case "check": check = try isOn()
        case "enforce": enforce = try isOn()
        case "migratable": migratable = try isOn()
        case "kvm": kvm = try isOn()
        case "pmu": try require(false)
        case "host-phys-bits": try require(true)
        default:
            guard !FeatureWord.bits(named: key).isEmpty else { throw VMMError("Property '\(property)' not found") }
            flags.append((key, try isOn()))
        }
    }
}
