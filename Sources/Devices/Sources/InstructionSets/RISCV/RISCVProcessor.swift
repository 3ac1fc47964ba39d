import BatonRuntime

/// What `-cpu` says: a model and its properties, which are QEMU's.
public struct RISCVProcessor: Equatable, Sendable {
    /// One of `models`.
    public let model: String
    /// What differs from the model, as `NAME=on` or `NAME=off`, in a fixed order: empty for the model itself.
    public let flags: [String]
    public private(set) var extensions: RISCVExtensions

    /// The first is the default.
    public static let models = ["rv64", "max", "rva22u64", "rva22s64"]

    /// `rv64` as it is now.
    public static let standard = RISCVProcessor(model: "rv64", flags: [], extensions: rv64)
    /// All that harts had before `-cpu` took properties, with each model.
    public static let original: RISCVExtensions = [
        .i, .m, .a, .f, .d, .c, .zicntr, .zicsr, .zifencei, .zba, .zbb, .zbs, .sstc, .svadu, .sv39, .sv48, .pmp,
        .hpmCounters,
    ]

    /// As `-cpu` has it.
    public var text: String { ([model] + flags).joined(separator: ",") }

    private init(model: String, flags: [String], extensions: RISCVExtensions) {
        (self.model, self.flags, self.extensions) = (model, flags, extensions)
    }

    /// The same model as a version with other extensions had it: for state that was saved by that version.
    public func replacing(_ extensions: RISCVExtensions) -> RISCVProcessor {
        RISCVProcessor(model: model, flags: flags, extensions: extensions)
    }

    // MARK: Models

    /// What every model has: facts about memory and S-mode that the profiles have names for.
    private static let common: RISCVExtensions = [
        .i, .m, .a, .f, .d, .c, .zic64b, .zicbom, .zicbop, .zicboz, .ziccamoa, .ziccif, .zicclsm, .ziccrse, .zicntr,
        .zicsr, .zihintpause, .zihpm, .zmmul, .za64rs, .zaamo, .zalrsc, .zca, .zcd, .zba, .zbb, .zbs, .ssccptr,
        .sscounterenw, .sstvala, .sstvecd, .ssu64xl, .pmp, .hpmCounters,
    ]
    private static let rv64: RISCVExtensions = common.union([
        .zifencei, .zihintntl, .zawrs, .zfa, .zbc, .sstc, .svadu, .svvptc, .sv39, .sv48, .sv57,
    ])
    private static let max: RISCVExtensions = rv64.union([
        .b, .zicond, .zacas, .zfhmin, .zcb, .zkt, .svinval, .svnapot, .svpbmt,
    ])
    /// RISC-V Profiles, "RVA22U64 Profile" and "RVA22S64 Profile": what is mandatory, and nothing else.
    private static let rva22u64: RISCVExtensions = common.union([.b, .zfhmin, .zkt])
    private static let rva22s64: RISCVExtensions = rva22u64.union([.zifencei, .svade, .svinval, .svpbmt, .sv39])

    /// Each is a model, and a property of every model.
    private static let profiles = ["rva22u64": rva22u64, "rva22s64": rva22s64]

    private static func extensions(of model: String) -> RISCVExtensions? {
        switch model {
        case "rv64": rv64
        case "max": max
        default: profiles[model]
        }
    }

    /// For `-cpu MODEL,help`.
    public static func properties(of model: String) -> [DeviceProperty] {
        let set = extensions(of: model) ?? []
        return RISCVExtensions.entries.filter(\.isProperty).map {
            DeviceProperty($0.name, "bool", set.contains($0.set) ? "on" : "off")
        }
    }

    // MARK: Parsing

    /// - Parameter text: of `-cpu`; nil for the default.
    /// - Throws: QEMU's error for a model, property, value or combination that there is not.
    public init(_ text: String?) throws(VMMError) {
        let parts = (text ?? Self.models[0]).split(separator: ",", omittingEmptySubsequences: false).map(String.init)
        let model = parts[0]
        guard let base = Self.extensions(of: model) else { throw Self.unknown(model) }
        var set = base
        var given: [String: Bool] = [:]
        for part in parts.dropFirst() {
            guard let place = part.firstIndex(of: "=") else {
                throw VMMError("Expected key=value format, found \(part).")
            }
            let (key, value) = (String(part[..<place]), String(part[part.index(after: place)...]))
            guard let isOn = try Self.setting(model, key, value) else { continue }
            if let profile = Self.profiles[key] {
                set.formUnion(profile)
                continue
            }
            guard let entry = RISCVExtensions.entries.first(where: { $0.name == key && $0.isProperty }) else {
                throw VMMError("Property '\(model)-riscv-cpu.\(key)' not found")
            }
            given[key] = isOn
            if isOn {
                set.formUnion(entry.set.union(entry.implies))
                if key == "b" { set.formUnion(entry.needs) }
            } else {
                set.subtract(entry.set.union(entry.implies))
            }
        }
        try Self.chooseTranslation(&set, base: base, given: given)
        // A letter for three extensions is not there without one of them.
        if given["b"] != true, !set.isSuperset(of: [.zba, .zbb, .zbs]) { set.remove(.b) }
        for entry in RISCVExtensions.entries where set.contains(entry.set) && !set.isSuperset(of: entry.needs) {
            let missing = entry.needs.subtracting(set).allNames[0]
            throw VMMError(
                "\(Self.capitalized(entry.name)) extension requires \(Self.capitalized(missing)) extension",
                hint: "Use \(entry.name)=off too.")
        }
        let flags = RISCVExtensions.entries.filter { $0.isProperty && base.contains($0.set) != set.contains($0.set) }
            .map { "\($0.name)=\(set.contains($0.set) ? "on" : "off")" }
        self.init(model: model, flags: flags, extensions: set)
    }

    private static func capitalized(_ name: String) -> String { name.prefix(1).uppercased() + name.dropFirst() }

    private static func unknown(_ model: String) -> VMMError {
        let missing = model.hasPrefix("rva23") ? " RVA23 needs V, and RVA23S64 H, which harts in software lack." : ""
        return VMMError(
            "unable to find CPU model '\(model)'", hint: "Models: \(models.joined(separator: ", ")).\(missing)")
    }

    /// QEMU's rule: what is asked for has all below it; what is not wanted has nothing above it.
    private static func chooseTranslation(
        _ set: inout RISCVExtensions, base: RISCVExtensions, given: [String: Bool]
    ) throws(VMMError) {
        let modes: [(name: String, set: RISCVExtensions)] = [("sv39", .sv39), ("sv48", .sv48), ("sv57", .sv57)]
        guard modes.contains(where: { given[$0.name] != nil }) else { return }
        set.subtract(.translation)
        if let highest = modes.lastIndex(where: { given[$0.name] == true }) {
            for mode in modes[...highest] {
                guard given[mode.name] != false else {
                    throw VMMError(
                        "cannot disable \(mode.name) satp mode if \(modes[highest].name) is enabled",
                        hint: "Use \(modes[highest].name)=off too.")
                }
                set.formUnion(mode.set)
            }
        } else {
            for mode in modes {
                guard given[mode.name] != false else { break }
                set.formUnion(mode.set.intersection(base))
            }
        }
    }

    /// - Returns: the value of a property that there is, or nil where there is nothing to do.
    private static func setting(_ model: String, _ key: String, _ value: String) throws(VMMError) -> Bool? {
        let property = "\(model)-riscv-cpu.\(key)"
        if let only = onlyValue[key] {
            guard value == only else {
                throw VMMError(
                    "'\(property)=\(value)' is not supported: it is always \(only)", hint: "Leave it out.")
            }
            return nil
        }
        let isOn: Bool
        switch value {
        case "on", "yes", "true", "y": isOn = true
        case "off", "no", "false", "n": isOn = false
        default:
            guard RISCVExtensions(name: key) != nil || absent.contains(key) || alwaysOn.contains(key) else {
                throw VMMError("Property '\(property)' not found")
            }
            throw VMMError("can't apply global \(property)=\(value): Parameter '\(key)' expects 'on' or 'off'")
        }
        if alwaysOn.contains(key) {
            guard isOn else {
                throw VMMError("'\(property)=off' is not supported: harts always have it", hint: "Leave it out.")
            }
            return nil
        }
        if absent.contains(key) {
            guard !isOn else {
                throw VMMError(
                    "'\(property)=on' is not supported: harts in software do not have it", hint: nearest(key))
            }
            return nil
        }
        guard isOn || profiles[key] == nil else {
            throw VMMError(
                "'\(property)=off' is not supported", hint: "Switch extensions off one by one, as in zfhmin=off.")
        }
        return isOn
    }

    /// Properties with one value.
    private static let onlyValue = [
        "cbom_blocksize": "64", "cbop_blocksize": "64", "cboz_blocksize": "64", "priv_spec": "v1.12.0",
        "pmp-granularity": "4", "num-pmp-regions": "16", "mvendorid": "0", "marchid": "0", "mimpid": "0",
    ]
    private static let alwaysOn: Set = [
        "i", "c", "s", "u", "g", "mmu", "zicsr", "zca", "zcd", "zmmul", "zaamo", "zalrsc",
    ]
    /// QEMU's properties for what harts do not have.
    private static let absent: Set = [
        "e", "v", "h", "debug", "rva23u64", "rva23s64", "sdtrig", "sscofpmf", "smcntrpmf", "smcsrind", "smcdeleg",
        "sscsrind", "ssccfg", "smctr", "ssctr", "zicfilp", "zicfiss", "zimop", "zcmop", "zama16b", "zabha", "zalasr",
        "zfbfmin", "zfh", "zfinx", "zdinx", "zhinx", "zhinxmin", "zce", "zcf", "zcmp", "zcmt", "ztso", "zbkb", "zbkc",
        "zbkx", "zk", "zkn", "zknd", "zkne", "zknh", "zkr", "zks", "zksed", "zksh", "zve32f", "zve32x", "zve64f",
        "zve64d", "zve64x", "zvfbfmin", "zvfbfwma", "zvfh", "zvfhmin", "zvbb", "zvbc", "zvkb", "zvkg", "zvkn", "zvknc",
        "zvkned", "zvkng", "zvknha", "zvknhb", "zvks", "zvksc", "zvksed", "zvksg", "zvksh", "zvkt", "smaia", "ssaia",
        "smepmp", "smrnmi", "smmpm", "smnpm", "ssnpm", "smstateen", "ssstateen", "sha", "smdbltrp", "ssdbltrp",
        "svukte", "svrsw60t59b",
    ]

    /// What works in place of an extension that there is not.
    private static func nearest(_ key: String) -> String {
        switch key {
        case "e": "Harts are RV64I, with all registers: leave it out."
        case "h": "A guest's own guests run by its software emulator: leave it out."
        case "v", "rva23u64", "rva23s64": "Programs have code without vectors: leave it out, or use -cpu rva22s64."
        case "smaia", "ssaia": "Use -machine virt,aia=aplic-imsic, which gives the harts both."
        case "zfh": "zfhmin=on has the conversions."
        case "zce", "zcmp", "zcmt": "zcb=on has the shorter loads, stores and extensions."
        case "zabha": "zacas=on has compare-and-swap of words and above."
        case "zbkb", "zbkc", "zbkx", "zk", "zkn", "zks": "zbb=on and zbc=on have a part of it."
        case _ where key.hasPrefix("zv"): "Programs have code without vectors: leave it out."
        default: "Leave it out; -cpu max has all that there is."
        }
    }
}
