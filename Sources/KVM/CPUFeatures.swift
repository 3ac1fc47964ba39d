/// A register of CPUID whose bits are features, with QEMU's names of them.
package struct FeatureWord {
    package let function: UInt32
    package let index: UInt32?
    package let register: CPUIDEntry.Register
    /// From bit 0 up; `-` for a bit without a name, which no guest gets.
    private let text: StaticString
    /// Bits whose state is not carried from one VMM to the next, or that promise what this VMM does not do.
    let excluded: UInt32

    private init(
        _ function: UInt32, _ index: UInt32?, _ register: CPUIDEntry.Register, excluding excluded: UInt32 = 0,
        _ text: StaticString
    ) {
        (self.function, self.index, self.register) = (function, index, register)
        (self.text, self.excluded) = (text, excluded)
    }

    /// Calls `body` with each bit and its name. A start asks for many names: none is made a string.
    private func forEachName(_ body: (_ bit: UInt32, _ name: UnsafeBufferPointer<UInt8>) -> Void) {
        text.withUTF8Buffer { bytes in
            var (bit, start) = (UInt32(0), 0)
            for place in 0...bytes.count where place == bytes.count || bytes[place] == UInt8(ascii: " ") {
                body(bit, UnsafeBufferPointer(rebasing: bytes[start..<place]))
                (bit, start) = (bit + 1, place + 1)
            }
        }
    }

    private static func isName(_ text: UnsafeBufferPointer<UInt8>) -> Bool { text[0] != UInt8(ascii: "-") }

    /// The bits that have a name.
    var named: UInt32 {
        var mask: UInt32 = 0
        forEachName { bit, name in if FeatureWord.isName(name) { mask |= 1 << bit } }
        return mask
    }

    package func matches(_ entry: CPUIDEntry) -> Bool { entry.function == function && entry.index == index ?? 0 }

    /// As QEMU describes a bit: `CPUID[eax=07h,ecx=00h].EBX.avx2 [bit 5]`.
    func description(bit: Int) -> String {
        let entry = CPUIDEntry(function: function, index: index ?? 0, hasIndex: index != nil)
        var name = ""
        forEachName { other, text in
            if other == bit, FeatureWord.isName(text) { name = "." + String(decoding: text, as: UTF8.self) }
        }
        return "\(entry.name).\(register.rawValue)\(name) [bit \(bit)]"
    }

    static let basicEDX = FeatureWord(
        1, nil, .edx,
        """
        fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - ds acpi mmx fxsr sse \
        sse2 ss ht tm ia64 pbe
        """)
    /// Without nested guests (vmx, smx) and counters of events (pdcm).
    static let basicECX = FeatureWord(
        1, nil, .ecx, excluding: 1 << 3 | 1 << 5 | 1 << 6 | 1 << 15,
        """
        pni pclmulqdq dtes64 monitor ds-cpl vmx smx est tm2 ssse3 cid - fma cx16 xtpr pdcm - pcid dca sse4.1 sse4.2 \
        x2apic movbe popcnt tsc-deadline aes xsave - avx f16c rdrand hypervisor
        """)
    /// Without enclaves and processor trace.
    static let structuredEBX = FeatureWord(
        7, 0, .ebx, excluding: 1 << 2 | 1 << 25,
        """
        fsgsbase tsc-adjust sgx bmi1 hle avx2 fdp-excptn-only smep bmi2 erms invpcid rtm - zero-fcs-fds mpx - avx512f \
        avx512dq rdseed adx smap avx512ifma pcommit clflushopt clwb intel-pt avx512pf avx512er avx512cd sha-ni \
        avx512bw avx512vl
        """)
    /// Without shadow stacks, whose pointer KVM keeps apart from all other state.
    static let structuredECX = FeatureWord(
        7, 0, .ecx, excluding: 1 << 7 | 1 << 30 | 1 << 31,
        """
        - avx512vbmi umip pku - waitpkg avx512vbmi2 shstk gfni vaes vpclmulqdq avx512vnni avx512bitalg - \
        avx512-vpopcntdq - la57 - - - - - rdpid - bus-lock-detect cldemote - movdiri movdir64b - sgxlc pks
        """)
    /// Without branch records and indirect branch tracking.
    static let structuredEDX = FeatureWord(
        7, 0, .edx, excluding: 1 << 19 | 1 << 20,
        """
        - - avx512-4vnniw avx512-4fmaps fsrm - - - avx512-vp2intersect - md-clear - - - serialize - tsx-ldtrk - - \
        arch-lbr ibt - amx-bf16 avx512-fp16 amx-tile amx-int8 spec-ctrl stibp flush-l1d arch-capabilities \
        core-capability ssbd
        """)
    static let structured1EAX = FeatureWord(
        7, 1, .eax, excluding: 1 << 17,
        """
        sha512 sm3 sm4 - avx-vnni avx512-bf16 - cmpccxadd - - fzrm fsrs fsrc - - - - fred lkgs wrmsrns - amx-fp16 - \
        avx-ifma - - lam
        """)
    static let structured1EDX = FeatureWord(
        7, 1, .edx, excluding: 1 << 19,
        "- - - - avx-vnni-int8 avx-ne-convert - - amx-complex - avx-vnni-int16 - - - prefetchiti - - - - avx10")
    static let structured2EDX = FeatureWord(7, 2, .edx, "intel-psfd ipred-ctrl rrsba-ctrl ddpd-u bhi-ctrl mcdt-no")
    static let extendedState = FeatureWord(0xd, 1, .eax, "xsaveopt xsavec xgetbv1 xsaves xfd")
    static let power = FeatureWord(6, nil, .eax, "- - arat")
    static let extendedEDX = FeatureWord(
        0x8000_0001, nil, .edx,
        "- - - - - - - - - - - syscall - - - - - - - - nx - mmxext - - fxsr-opt pdpe1gb rdtscp - lm 3dnowext 3dnow")
    /// Without nested guests (svm, skinit) and counters of events.
    static let extendedECX = FeatureWord(
        0x8000_0001, nil, .ecx, excluding: 1 << 2 | 1 << 10 | 1 << 12 | 1 << 13 | 1 << 15 | 1 << 23 | 1 << 24,
        """
        lahf-lm cmp-legacy svm extapic cr8legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt - lwp \
        fma4 tce - nodeid-msr - tbm topoext perfctr-core perfctr-nb
        """)
    static let advancedPowerEBX = FeatureWord(0x8000_0007, nil, .ebx, "overflow-recov succor")
    static let advancedPowerEDX = FeatureWord(0x8000_0007, nil, .edx, "- - - - - - - - invtsc")
    static let extended8EBX = FeatureWord(
        0x8000_0008, nil, .ebx,
        """
        clzero - xsaveerptr - - - - - - wbnoinvd - - ibpb - ibrs amd-stibp - stibp-always-on - - - - - - amd-ssbd \
        virt-ssbd amd-no-ssb - amd-psfd
        """)
    static let extended21EAX = FeatureWord(
        0x8000_0021, nil, .eax,
        """
        no-nested-data-bp - lfence-always-serializing - - - null-sel-clr-base - auto-ibrs - - - - - - - - - - - - - - \
        - eraps - - sbpb ibpb-brtype srso-no srso-user-kernel-no
        """)
    /// KVM's own. Without the oldest clock; page faults that are told later, as what waits for one is in no state; and
    /// stolen time with what needs it: KVM counts that of a thread, and a CPU has another after each update, before
    /// whose beginning it would have been stolen (`record_steal_time` in the kernel).
    static let paravirtual = FeatureWord(
        0x4000_0001, nil, .eax,
        excluding: 1 << 0 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 9 | 1 << 10 | 1 << 14 | 1 << 15,
        """
        kvmclock kvm-nopiodelay kvm-mmu kvmclock kvm-asyncpf kvm-steal-time kvm-pv-eoi kvm-pv-unhalt - \
        kvm-pv-tlb-flush kvm-asyncpf-vmexit kvm-pv-ipi kvm-poll-control kvm-pv-sched-yield kvm-asyncpf-int \
        kvm-msi-ext-dest-id - - - - - - - - kvmclock-stable-bit
        """)

    package static let all = [
        basicEDX, basicECX, structuredEBX, structuredECX, structuredEDX, structured1EAX, structured1EDX,
        structured2EDX, extendedState, power, extendedEDX, extendedECX, advancedPowerEBX, advancedPowerEDX,
        extended8EBX, extended21EAX, paravirtual,
    ]

    /// Names of the flags that a guest may get, sorted.
    static var names: [String] {
        var names: Set<String> = []
        for word in all {
            word.forEachName { bit, name in
                guard isName(name), word.excluded & 1 << bit == 0 else { return }
                names.insert(String(decoding: name, as: UTF8.self))
            }
        }
        return names.sorted()
    }

    /// Other names that QEMU takes.
    private static let aliases = [
        "sse3": "pni", "sse4-1": "sse4.1", "sse4-2": "sse4.2", "sse4_1": "sse4.1", "sse4_2": "sse4.2", "xd": "nx",
        "i64": "lm", "ffxsr": "fxsr-opt", "lzcnt": "abm", "cmp_legacy": "cmp-legacy", "lahf_lm": "lahf-lm",
        "tsc_deadline": "tsc-deadline", "tsc_adjust": "tsc-adjust", "pclmuldq": "pclmulqdq",
        "nodeid_msr": "nodeid-msr", "perfctr_core": "perfctr-core", "perfctr_nb": "perfctr-nb",
        "kvm_nopiodelay": "kvm-nopiodelay", "kvm_steal_time": "kvm-steal-time", "kvm_asyncpf": "kvm-asyncpf",
        "kvm_pv_eoi": "kvm-pv-eoi", "kvm_pv_unhalt": "kvm-pv-unhalt", "kvm_mmu": "kvm-mmu",
    ]

    /// The bits that a flag stands for, by places in `all`; empty for none of its name.
    package static func bits(named flag: String) -> [(word: Int, mask: UInt32)] {
        var name = aliases[flag] ?? flag
        var found: [(word: Int, mask: UInt32)] = []
        name.withUTF8 { name in
            for (place, word) in all.enumerated() {
                var mask: UInt32 = 0
                word.forEachName { bit, other in
                    if isName(other), other.elementsEqual(name) { mask |= 1 << bit }
                }
                // Of the two clocks that have one name a guest gets the later.
                if mask & ~word.excluded != 0 { mask &= ~word.excluded }
                if mask != 0 { found.append((place, mask)) }
            }
        }
        return found
    }
}
