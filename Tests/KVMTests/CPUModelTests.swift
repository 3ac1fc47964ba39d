import BatonRuntime
import KVM
import Testing

/// What `-cpu` makes of what a host offers; without a host.
@Suite("CPU models")
struct CPUModelTests {
    private let topology = CPUTopology(sockets: 1, cores: 2, threads: 2)

    /// All features of a processor that has everything.
    private var everything: [CPUIDEntry] {
        var entries = [
            CPUIDEntry(function: 0, eax: 0x20, ebx: 0x756e_6547, ecx: 0x6c65_746e, edx: 0x4965_6e69),
            CPUIDEntry(function: 0x8000_0000, eax: 0x8000_0021),
            CPUIDEntry(function: 0xd, index: 0, hasIndex: true, eax: 0x6_02e7, ebx: 0x240, ecx: 0x2b00),
        ]
        for word in FeatureWord.all {
            let place = entries.firstIndex { word.matches($0) } ?? entries.endIndex
            if place == entries.endIndex {
                entries.append(
                    CPUIDEntry(function: word.function, index: word.index ?? 0, hasIndex: word.index != nil))
            }
            entries[place][word.register] = UInt32.max
        }
        return entries
    }

    private func table(_ model: String, without flag: String? = nil) throws -> CPUIDTable {
        var supported = everything
        if let flag {
            for (place, mask) in FeatureWord.bits(named: flag) {
                let word = FeatureWord.all[place]
                for index in supported.indices where word.matches(supported[index]) {
                    supported[index][word.register] &= ~mask
                }
            }
        }
        return CPUIDTable(supported: supported, model: try CPUModel(model), topology: topology)
    }

    private func has(_ table: CPUIDTable, _ flag: String) -> Bool {
        FeatureWord.bits(named: flag).allSatisfy { place, mask in
            let word = FeatureWord.all[place]
            return table.entries.contains { word.matches($0) && $0[word.register] & mask == mask }
        }
    }

    @Test("have what is asked for")
    func flags() throws {
        #expect(has(try table("host"), "avx512f"))
        #expect(!has(try table("host,-avx512f"), "avx512f"))
        #expect(!has(try table("host,avx512f=off"), "avx512f"))
        #expect(!has(try table("host,-avx2,avx2=on"), "avx2"))
        #expect(!has(try table("host"), "invtsc"))
        #expect(has(try table("host,+invtsc"), "invtsc"))
        #expect(has(try table("host,migratable=off"), "invtsc"))
        #expect(!has(try table("x86-64-v2"), "avx2"))
        #expect(has(try table("x86-64-v3"), "avx2"))
        #expect(!has(try table("x86-64-v3"), "avx512f"))
        #expect(has(try table("x86-64-v4"), "avx512vl"))
        #expect(has(try table("x86-64-v2,+aes"), "aes"))
    }

    @Test("never have what cannot be carried", arguments: ["vmx", "svm", "sgx", "intel-pt", "shstk", "kvm-asyncpf"])
    func excluded(_ flag: String) throws {
        #expect(!has(try table("max"), flag))
        #expect(!has(try table("max,+\(flag)"), flag))
        #expect(try table("max,+\(flag)").missing.count == 1)
    }

    @Test("say what the host lacks, as QEMU does")
    func missing() throws {
        #expect(
            try table("x86-64-v3", without: "avx2").missing
                == ["host doesn't support requested feature: CPUID[eax=07h,ecx=00h].EBX.avx2 [bit 5]"])
        #expect(try table("host", without: "avx2").missing.isEmpty)
        #expect(
            try table("host,+popcnt", without: "popcnt").missing
                == ["host doesn't support requested feature: CPUID[eax=01h].ECX.popcnt [bit 23]"])
    }

    @Test(
        "are refused in QEMU's words",
        arguments: [
            ("pentium9", "unable to find CPU model 'pentium9'"),
            ("", "unable to find CPU model ''"),
            ("host,+avx1024", "Property 'host-x86_64-cpu.avx1024' not found"),
            ("max,-", "Property 'max-x86_64-cpu.' not found"),
            ("host,avx=maybe", "can't apply global host-x86_64-cpu.avx=maybe: Parameter 'avx' expects 'on' or 'off'"),
        ])
    func refused(_ model: String, _ text: String) {
        #expect { try CPUModel(model) } throws: { ($0 as? VMMError)?.message == text }
    }

    @Test("give each CPU its place")
    func places() throws {
        #expect((0..<4).map { topology.apicID($0) } == [0, 1, 2, 3])
        let odd = CPUTopology(sockets: 2, cores: 3, threads: 1)
        #expect((0..<6).map { odd.apicID($0) } == [0, 1, 2, 4, 5, 6])
        var entries = try table("host").entries
        topology.personalize(&entries, apicID: 3)
        let basic = try #require(entries.first { $0.function == 1 })
        #expect(basic.ebx >> 24 == 3 && basic.ebx >> 16 & 0xff == 4 && basic.edx & 1 << 28 != 0)
        let extended = entries.filter { $0.function == 0xb }
        #expect(extended.map(\.edx) == [3, 3, 3])
        #expect(extended.map(\.ebx) == [2, 4, 0])
        #expect(extended.map(\.eax) == [1, 2, 0])
    }

    @Test("have no state of registers that they do not have")
    func extendedState() throws {
        func leaf(_ table: CPUIDTable) -> UInt32? {
            table.entries.first { $0.function == 0xd && $0.index == 0 }?.eax
        }
        #expect(leaf(try table("x86-64-v2")) == nil)
        #expect(leaf(try table("x86-64-v3")) == 7)
        #expect(leaf(try table("x86-64-v4")) == 0xe7)
        #expect(leaf(try table("host,-amx-tile")) == 0x2e7)
    }

    @Test("are compared by what differs")
    func difference() throws {
        let own = try table("host").entries
        #expect(CPUIDTable.difference(own, own) == nil)
        let other = try table("host,-avx2").entries
        let gone = try #require(CPUIDTable.difference(own, other))
        #expect(gone == "CPUID[eax=07h,ecx=00h].EBX.avx2 [bit 5] is gone")
        let new = try #require(CPUIDTable.difference(other, own))
        #expect(new == "CPUID[eax=07h,ecx=00h].EBX.avx2 [bit 5] is new")
    }
}
