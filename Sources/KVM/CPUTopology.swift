import BatonRuntime

/// How CPUs are grouped, and what their APIC ids are: as QEMU's, with bits for threads, cores and sockets, from the
/// lowest up.
package struct CPUTopology {
    let sockets: Int
    let cores: Int
    let threads: Int

    package init(sockets: Int, cores: Int, threads: Int) {
        (self.sockets, self.cores, self.threads) = (sockets, cores, threads)
    }

    var cpuCount: Int { sockets * cores * threads }
    var perSocket: Int { cores * threads }
    /// Bits of an APIC id below the core's, and below the socket's.
    var threadBits: Int { CPUTopology.bits(threads) }
    var socketShift: Int { threadBits + CPUTopology.bits(cores) }

    /// Bits that hold the numbers below `count`.
    private static func bits(_ count: Int) -> Int { Int.bitWidth - (count - 1).leadingZeroBitCount }

    package func apicID(_ index: Int) -> UInt32 {
        let (thread, rest) = (index % threads, index / threads)
        let (core, socket) = (rest % cores, rest / cores)
        return UInt32(socket << socketShift | core << threadBits | thread)
    }

    /// Writes what a CPU has of its own into the leaves that tell of topology.
    package func personalize(_ entries: inout [CPUIDEntry], apicID: UInt32) {
        let mask = UInt32(1) << UInt32(socketShift) - 1
        for place in entries.indices {
            switch entries[place].function {
            case 1: entries[place].ebx = entries[place].ebx & 0x00ff_ffff | apicID << 24
            case 0xb: entries[place].edx = apicID
            case 0x8000_001e:
                entries[place].eax = apicID
                entries[place].ebx = UInt32(threads - 1) << 8 | (apicID & mask) >> UInt32(threadBits) & 0xff
                entries[place].ecx = apicID >> UInt32(socketShift)
            default: break
            }
        }
    }

    /// Sets what all CPUs share of these leaves (Intel SDM 2A, CPUID; AMD APM 3, E.4).
    func describe(_ entry: inout CPUIDEntry) {
        let sharing = UInt32(1) << UInt32(threadBits) - 1
        let package = UInt32(1) << UInt32(socketShift) - 1
        switch entry.function {
        case 1:
            let count = UInt32(min(perSocket, 255))
            entry.ebx = entry.ebx & 0xff00 | count << 16
            if entry.ebx & 0xff00 == 0 { entry.ebx |= 8 << 8 }
            entry.edx = entry.edx & ~(1 << 28) | (perSocket > 1 ? 1 << 28 : 0)
        case 4 where entry.eax & 0x1f != 0:
            // Levels 1 and 2 are a core's, the third is the package's.
            let shared = entry.eax >> 5 & 7 < 3 ? sharing : package
            entry.eax = entry.eax & 0x3fff | shared << 14 | min(package >> UInt32(threadBits), 63) << 26
        case 0x8000_0008:
            entry.ecx = perSocket > 1 ? UInt32(socketShift) << 12 | UInt32(min(perSocket - 1, 255)) : 0
        case 0x8000_001d where entry.eax & 0x1f != 0:
            let shared = entry.eax >> 5 & 7 < 3 ? UInt32(threads - 1) : UInt32(perSocket - 1)
            entry.eax = entry.eax & 0x3fff | min(shared, 0xfff) << 14
        default: break
        }
    }

    /// Leaf 0xb, the extended topology.
    var extendedLeaves: [CPUIDEntry] {
        [
            CPUIDEntry(
                function: 0xb, index: 0, hasIndex: true, eax: UInt32(threadBits), ebx: UInt32(threads), ecx: 1 << 8),
            CPUIDEntry(
                function: 0xb, index: 1, hasIndex: true, eax: UInt32(socketShift), ebx: UInt32(perSocket),
                ecx: 2 << 8 | 1),
            CPUIDEntry(function: 0xb, index: 2, hasIndex: true, ecx: 2),
        ]
    }
}
