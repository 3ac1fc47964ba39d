import CKVM

/// An answer of the CPUID instruction.
package struct CPUIDEntry: Equatable {
    package var function: UInt32
    package var index: UInt32 = 0
    /// Whether `index` matters: KVM_CPUID_FLAG_SIGNIFCANT_INDEX.
    package var hasIndex = false
    package var eax: UInt32 = 0
    package var ebx: UInt32 = 0
    package var ecx: UInt32 = 0
    package var edx: UInt32 = 0

    package init(
        function: UInt32, index: UInt32 = 0, hasIndex: Bool = false, eax: UInt32 = 0, ebx: UInt32 = 0, ecx: UInt32 = 0,
        edx: UInt32 = 0
    ) {
        (self.function, self.index, self.hasIndex) = (function, index, hasIndex)
        (self.eax, self.ebx, self.ecx, self.edx) = (eax, ebx, ecx, edx)
    }

    package enum Register: String {
        case eax = "EAX"
        case ebx = "EBX"
        case ecx = "ECX"
        case edx = "EDX"
    }

    package subscript(register: Register) -> UInt32 {
        get {
            switch register {
            case .eax: eax
            case .ebx: ebx
            case .ecx: ecx
            case .edx: edx
            }
        }
        set {
            switch register {
            case .eax: eax = newValue
            case .ebx: ebx = newValue
            case .ecx: ecx = newValue
            case .edx: edx = newValue
            }
        }
    }

    /// As QEMU names it: `CPUID[eax=07h,ecx=00h]`.
    var name: String {
        let leaf = CPUIDEntry.hex(function)
        return hasIndex ? "CPUID[eax=\(leaf)h,ecx=\(CPUIDEntry.hex(index))h]" : "CPUID[eax=\(leaf)h]"
    }

    private static func hex(_ value: UInt32) -> String {
        let digits = String(value, radix: 16, uppercase: true)
        return digits.utf8.count < 2 ? "0" + digits : digits
    }

    // MARK: struct kvm_cpuid2

    private static let head = 8
    private static let size = 40

    /// Room for `capacity` entries, to be deallocated by the caller.
    static func buffer(_ capacity: Int) -> UnsafeMutableRawBufferPointer {
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: head + size * capacity, alignment: 8)
        buffer.initializeMemory(as: UInt8.self, repeating: 0)
        buffer.storeBytes(of: UInt32(capacity), as: UInt32.self)
        return buffer
    }

    static func entries(_ buffer: UnsafeMutableRawBufferPointer) -> [CPUIDEntry] {
        let count = min(Int(buffer.load(as: UInt32.self)), (buffer.count - head) / size)
        return (0..<count).map { place in
            func word(_ index: Int) -> UInt32 {
                buffer.load(fromByteOffset: head + size * place + 4 * index, as: UInt32.self)
            }
            return CPUIDEntry(
                function: word(0), index: word(1), hasIndex: word(2) & 1 != 0, eax: word(3), ebx: word(4),
                ecx: word(5), edx: word(6))
        }
    }

    static func buffer(of entries: [CPUIDEntry]) -> UnsafeMutableRawBufferPointer {
        let buffer = buffer(entries.count)
        for (place, entry) in entries.enumerated() {
            for (index, word) in entry.words.enumerated() {
                buffer.storeBytes(of: word, toByteOffset: head + size * place + 4 * index, as: UInt32.self)
            }
        }
        return buffer
    }

    /// Function, index, flags and registers.
    var words: [UInt32] { [function, index, hasIndex ? 1 : 0, eax, ebx, ecx, edx] }
}
