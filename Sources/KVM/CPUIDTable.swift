import BatonRuntime
import CKVM

/// Makes the answers of CPUID from what KVM offers, a model and a topology.
package struct CPUIDTable {
    /// What all CPUs have in common.
    package private(set) var entries: [CPUIDEntry] = []
    /// What the model asks for and the host lacks, in QEMU's words.
    package private(set) var missing: [String] = []

    private let supported: [CPUIDEntry]
    private let model: CPUModel
    private let topology: CPUTopology
    /// The bits of each word of `FeatureWord.all`.
    private var features: [UInt32] = []

    /// Leaves that are handed on, besides those with features: sizes of caches, frequencies, brand.
    private static let passed: Set<UInt32> = [2, 4, 0x15, 0x16, 0x8000_0005, 0x8000_0006, 0x8000_001a, 0x8000_001d]
    private static let lastBasic: UInt32 = 0x16
    private static let lastExtended: UInt32 = 0x8000_0021

    /// - Parameter supported: of KVM, with what it tells of by capabilities.
    package init(supported: [CPUIDEntry], model: CPUModel, topology: CPUTopology) {
        (self.supported, self.model, self.topology) = (supported, model, topology)
        features = chooseFeatures()
        makeEntries()
    }

    private func offered(_ function: UInt32, _ index: UInt32 = 0) -> CPUIDEntry? {
        supported.first { $0.function == function && $0.index == index }
    }

    private func has(_ flag: String) -> Bool {
        let bits = FeatureWord.bits(named: flag)
        return !bits.isEmpty && bits.allSatisfy { features[$0.word] & $0.mask == $0.mask }
    }

    // MARK: Features

    private mutating func chooseFeatures() -> [UInt32] {
        let words = FeatureWord.all
        var available = words.map { word in
            (offered(word.function, word.index ?? 0)?[word.register] ?? 0) & word.named & ~word.excluded
        }
        // The state of tiles needs a permission for this process, without which KVM does not offer it.
        if (offered(0xd)?.eax ?? 0) & 1 << 18 == 0 {
            for flag in ["amx-tile", "amx-int8", "amx-bf16", "amx-fp16", "amx-complex", "xfd"] {
                for (word, mask) in FeatureWord.bits(named: flag) { available[word] &= ~mask }
            }
        }
        var chosen: [UInt32]
        if let flags = model.modelFlags {
            chosen = words.map { _ in 0 }
            for flag in flags {
                for (word, mask) in FeatureWord.bits(named: String(flag)) {
                    chosen[word] |= CPUModel.isOptional(String(flag)) ? mask & available[word] : mask
                }
            }
        } else {
            chosen = available
            // As in QEMU, no promise is made that the rate of the counter outlives this host.
            if model.migratable {
                for (word, mask) in FeatureWord.bits(named: "invtsc") { chosen[word] &= ~mask }
            }
        }
        for (flag, isOn) in model.flags {
            for (word, mask) in FeatureWord.bits(named: flag) {
                chosen[word] = isOn ? chosen[word] | mask : chosen[word] & ~mask
            }
        }
        // The topology decides on these.
        let settled: UInt32 = 1 << 28
        for (place, word) in words.enumerated() {
            var lacking = chosen[place] & ~available[place]
            if word.function == 1, word.register == .edx { lacking &= ~settled }
            for bit in 0..<32 where lacking & 1 << UInt32(bit) != 0 {
                missing.append("host doesn't support requested feature: " + word.description(bit: bit))
            }
            chosen[place] &= available[place]
        }
        return chosen
    }

    // MARK: Leaves

    private mutating func makeEntries() {
        let isAMD = offered(0)?.edx == 0x6974_6e65 || offered(0)?.ecx == 0x444d_4163
        let topoext = has("topoext")
        for entry in supported {
            let own =
                CPUIDTable.passed.contains(entry.function) || FeatureWord.all.contains { $0.matches(entry) }
                || [0, 1, 7, 0xd, 0x8000_0000, 0x8000_0001, 0x8000_0008].contains(entry.function)
                || entry.function == 0x8000_001e
            guard own, topoext || (entry.function != 0x8000_001d && entry.function != 0x8000_001e) else { continue }
            var entry = entry
            guard adapt(&entry, isAMD) else { continue }
            topology.describe(&entry)
            if !entries.contains(where: { $0.function == entry.function && $0.index == entry.index }) {
                entries.append(entry)
            }
        }
        if (offered(0)?.eax ?? 0) >= 0xb { entries += topology.extendedLeaves }
        entries += brand
        if model.kvm {
            entries.append(
                CPUIDEntry(
                    function: 0x4000_0000, eax: 0x4000_0001, ebx: 0x4b4d_564b, ecx: 0x564b_4d56, edx: 0x4d))
        }
    }

    /// - Returns: whether the guest gets the leaf.
    private func adapt(_ entry: inout CPUIDEntry, _ isAMD: Bool) -> Bool {
        let offered = entry
        if FeatureWord.all.contains(where: { $0.matches(offered) }) {
            // What has no name is not handed on.
            let isIdentity = entry.function == 1
            entry.eax = isIdentity ? entry.eax : 0
            entry.ebx = isIdentity ? entry.ebx : 0
            (entry.ecx, entry.edx) = (0, 0)
        }
        for (place, word) in FeatureWord.all.enumerated() where word.matches(offered) {
            entry[word.register] = features[place]
        }
        switch entry.function {
        case 0: entry.eax = min(entry.eax, CPUIDTable.lastBasic)
        case 1:
            entry.ebx &= 0xff00
            entry.ecx |= 1 << 31
            // As QEMU's qemu64: a model that stands for none in particular.
            if !model.isHost { entry.eax = 0x0006_0fb1 }
        case 7 where entry.index == 0: entry.eax = min(offered.eax, 2)
        case 0xd: return adaptExtendedState(&entry, offered)
        case 0x8000_0000: entry.eax = min(entry.eax, CPUIDTable.lastExtended)
        case 0x8000_0001:
            // AMD repeats features of leaf 1.
            if isAMD { entry.edx |= features[0] & 0x0183_f3ff }
            entry.ecx = entry.ecx & ~2 | (isAMD && topology.perSocket > 1 ? 2 : 0)
            entry.eax = isAMD ? (model.isHost ? offered.eax : 0x0006_0fb1) : 0
        case 0x8000_0008:
            // Bits of addresses: physical ones as the host's; linear ones as the paging that there is.
            let linear: UInt32 = has("la57") ? 57 : 48
            entry.eax = offered.eax & 0xff | linear << 8
        case 0x8000_001a: (entry.ebx, entry.ecx, entry.edx) = (0, 0, 0)
        case 0x4000_0001: return model.kvm
        default: break
        }
        return true
    }

    /// The components of extended state that the chosen features have, by the bits of XCR0.
    private var components: UInt32 {
        var mask: UInt32 = 3
        if has("avx") { mask |= 1 << 2 }
        if has("mpx") { mask |= 3 << 3 }
        if has("avx512f") { mask |= 7 << 5 }
        if has("pku") { mask |= 1 << 9 }
        if has("amx-tile") { mask |= 3 << 17 }
        return mask & (offered(0xd)?.eax ?? 0)
    }

    private func adaptExtendedState(_ entry: inout CPUIDEntry, _ offered: CPUIDEntry) -> Bool {
        guard has("xsave") else { return false }
        switch entry.index {
        case 0:
            let mask = components
            entry.eax = mask
            // Of XCR0 as it is after a reset; KVM keeps it up to date.
            entry.ebx = 0x240
            entry.ecx = supported.reduce(UInt32(0x240)) { size, part in
                guard part.function == 0xd, 2..<32 ~= part.index, mask & 1 << part.index != 0 else { return size }
                return max(size, part.ebx &+ part.eax)
            }
            entry.edx = 0
        // No component that only a supervisor has.
        case 1: (entry.ebx, entry.ecx, entry.edx) = (0, 0, 0)
        case 2..<32:
            guard components & 1 << entry.index != 0 else { return false }
            entry = offered
        default: return false
        }
        return true
    }

    /// Leaves 0x80000002 to 4: 48 bytes of text.
    private var brand: [CPUIDEntry] {
        if model.modelID == nil, model.isHost, (offered(0x8000_0000)?.eax ?? 0) >= 0x8000_0004 {
            return (UInt32(0x8000_0002)...0x8000_0004).map { leaf in
                let host = ckvm_cpuid(leaf, 0)
                return CPUIDEntry(function: leaf, eax: host.eax, ebx: host.ebx, ecx: host.ecx, edx: host.edx)
            }
        }
        var bytes = Array((model.modelID ?? "Baton \(model.name)").utf8.prefix(47))
        bytes += Array(repeating: 0, count: 48 - bytes.count)
        func word(_ index: Int) -> UInt32 {
            (0..<4).reduce(UInt32(0)) { $0 | UInt32(bytes[4 * index + $1]) << UInt32(8 * $1) }
        }
        return (0..<3).map { place in
            CPUIDEntry(
                function: 0x8000_0002 + UInt32(place), eax: word(4 * place), ebx: word(4 * place + 1),
                ecx: word(4 * place + 2), edx: word(4 * place + 3))
        }
    }

    // MARK: Comparison

    /// What differs between two tables, for an error; nil when nothing does.
    package static func difference(_ saved: [CPUIDEntry], _ own: [CPUIDEntry]) -> String? {
        for entry in saved {
            guard let other = own.first(where: { $0.function == entry.function && $0.index == entry.index }) else {
                return "\(entry.name) is not there"
            }
            for register in [CPUIDEntry.Register.eax, .ebx, .ecx, .edx] where entry[register] != other[register] {
                let word = FeatureWord.all.first { $0.matches(entry) && $0.register == register }
                let different = entry[register] ^ other[register]
                if let word, different & word.named != 0 {
                    return "\(word.description(bit: (different & word.named).trailingZeroBitCount)) is "
                        + (other[register] & different & word.named != 0 ? "new" : "gone")
                }
                return "\(entry.name).\(register.rawValue) is \(Hex(UInt64(other[register]))), "
                    + "not \(Hex(UInt64(entry[register])))"
            }
        }
        let new = own.first { entry in !saved.contains { $0.function == entry.function && $0.index == entry.index } }
        return new.map { "\($0.name) is new" }
    }
}
