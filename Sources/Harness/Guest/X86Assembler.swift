/// A small assembler for x86-64: just what the harness' guest needs, so that
/// the harness runs where nothing but Baton is installed.
///
/// Encodings as in Intel's Software Developer's Manual, volume 2.
struct X86Assembler {
    enum Register: UInt8 {
        case rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15
    }
    /// Operations of two operands: the opcode's middle bits.
    enum Operation: UInt8 {
        case add = 0, or = 1, and = 4, sub = 5, xor = 6, cmp = 7
    }
    enum Condition: UInt8 {
        case below = 2, aboveOrEqual = 3, equal = 4, notEqual = 5, belowOrEqual = 6, above = 7
    }
    /// Of an access to memory, in bytes. What is narrower than a register is extended by zeroes.
    enum Width { case byte, doubleword, quadword }
    struct Label: Hashable { fileprivate let number: Int }

    /// Where the program will be.
    let start: UInt64
    private(set) var bytes: [UInt8] = []
    private var places: [Label: Int] = [:]
    /// Displacements of 32 bits, which count from their end.
    private var fixups: [(at: Int, label: Label)] = []
    private var labels = 0

    init(at start: UInt64) { self.start = start }

    mutating func label() -> Label {
        labels += 1
        return Label(number: labels)
    }

    /// Says that a label is here.
    mutating func place(_ label: Label) { places[label] = bytes.count }
    mutating func here() -> Label {
        let label = self.label()
        place(label)
        return label
    }
    /// The address of a label that has a place.
    func address(of label: Label) -> UInt64 {
        guard let place = places[label] else { preconditionFailure("a label has no place") }
        return start + UInt64(place)
    }

    // MARK: Encoding

    mutating func raw(_ code: UInt8...) { bytes += code }
    mutating func word(_ value: UInt32) { bytes += (0..<4).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) } }

    /// A REX prefix for an operand in ModRM's `reg` and one in its `rm`.
    private mutating func rex(wide: Bool, reg: UInt8, rm: UInt8) {
        bytes.append(0x40 | (wide ? 8 : 0) | (reg >> 3) << 2 | rm >> 3)
    }
    private mutating func registers(_ reg: UInt8, _ rm: UInt8) { bytes.append(0xc0 | (reg & 7) << 3 | rm & 7) }

    /// `[base + displacement]`.
    private mutating func memory(_ reg: UInt8, _ base: Register, _ displacement: Int32) {
        bytes.append(0x80 | (reg & 7) << 3 | base.rawValue & 7)
        // RSP's and R12's encoding means that another byte follows.
        if base.rawValue & 7 == 4 { bytes.append(0x24) }
        word(UInt32(bitPattern: displacement))
    }

    // MARK: Instructions

    mutating func constant(_ register: Register, _ value: UInt64) {
        let isNarrow = value <= UInt64(UInt32.max)
        rex(wide: !isNarrow, reg: 0, rm: register.rawValue)
        bytes.append(0xb8 | register.rawValue & 7)
        word(UInt32(truncatingIfNeeded: value))
        if !isNarrow { word(UInt32(truncatingIfNeeded: value >> 32)) }
    }

    mutating func move(_ target: Register, _ source: Register) {
        rex(wide: true, reg: source.rawValue, rm: target.rawValue)
        bytes.append(0x89)
        registers(source.rawValue, target.rawValue)
    }

    mutating func operate(_ operation: Operation, _ target: Register, _ source: Register) {
        rex(wide: true, reg: source.rawValue, rm: target.rawValue)
        bytes.append(operation.rawValue << 3 | 1)
        registers(source.rawValue, target.rawValue)
    }
    /// - Parameter value: is extended by its sign.
    mutating func operate(_ operation: Operation, _ target: Register, _ value: Int32) {
        rex(wide: true, reg: 0, rm: target.rawValue)
        bytes.append(0x81)
        registers(operation.rawValue, target.rawValue)
        word(UInt32(bitPattern: value))
    }
    mutating func multiply(_ target: Register, _ source: Register) {
        rex(wide: true, reg: target.rawValue, rm: source.rawValue)
        raw(0x0f, 0xaf)
        registers(target.rawValue, source.rawValue)
    }
    mutating func shiftLeft(_ target: Register, _ count: UInt8) { shift(4, target, count) }
    mutating func shiftRight(_ target: Register, _ count: UInt8) { shift(5, target, count) }
    private mutating func shift(_ kind: UInt8, _ target: Register, _ count: UInt8) {
        rex(wide: true, reg: 0, rm: target.rawValue)
        bytes.append(0xc1)
        registers(kind, target.rawValue)
        bytes.append(count)
    }

    mutating func load(_ width: Width, _ target: Register, _ base: Register, _ displacement: Int32 = 0) {
        rex(wide: width == .quadword, reg: target.rawValue, rm: base.rawValue)
        if width == .byte { raw(0x0f, 0xb6) } else { raw(0x8b) }
        memory(target.rawValue, base, displacement)
    }
    mutating func store(_ width: Width, _ source: Register, _ base: Register, _ displacement: Int32 = 0) {
        rex(wide: width == .quadword, reg: source.rawValue, rm: base.rawValue)
        raw(width == .byte ? 0x88 : 0x89)
        memory(source.rawValue, base, displacement)
    }

    mutating func branch(_ condition: Condition, to label: Label) {
        raw(0x0f, 0x80 | condition.rawValue)
        displacement(to: label)
    }
    mutating func jump(to label: Label) {
        raw(0xe9)
        displacement(to: label)
    }
    mutating func call(_ label: Label) {
        raw(0xe8)
        displacement(to: label)
    }
    private mutating func displacement(to label: Label) {
        fixups.append((bytes.count, label))
        word(0)
    }
    mutating func ret() { raw(0xc3) }
    mutating func push(_ register: Register) {
        rex(wide: false, reg: 0, rm: register.rawValue)
        raw(0x50 | register.rawValue & 7)
    }
    mutating func pop(_ register: Register) {
        rex(wide: false, reg: 0, rm: register.rawValue)
        raw(0x58 | register.rawValue & 7)
    }

    /// AL to the port in DX.
    mutating func outByte() { raw(0xee) }
    /// AL from the port in DX.
    mutating func inByte() { raw(0xec) }
    /// EDX and EAX from the MSR in ECX.
    mutating func readMSR() { raw(0x0f, 0x32) }
    mutating func writeMSR() { raw(0x0f, 0x30) }
    mutating func readTimeStampCounter() { raw(0x0f, 0x31) }
    mutating func halt() { raw(0xf4) }
    mutating func disableInterrupts() { raw(0xfa) }
    /// From the instruction after the next on.
    mutating func enableInterrupts() { raw(0xfb) }
    mutating func returnFromInterrupt() { raw(0x48, 0xcf) }

    mutating func writeControl(_ number: UInt8, _ source: Register) { special(0x22, number, source) }
    mutating func readControl(_ number: UInt8, _ target: Register) { special(0x20, number, target) }
    mutating func writeDebug(_ number: UInt8, _ source: Register) { special(0x23, number, source) }
    mutating func readDebug(_ number: UInt8, _ target: Register) { special(0x21, number, target) }
    private mutating func special(_ opcode: UInt8, _ number: UInt8, _ register: Register) {
        rex(wide: false, reg: number, rm: register.rawValue)
        raw(0x0f, opcode)
        registers(number, register.rawValue)
    }

    /// The 16 bytes of an XMM register (movups).
    mutating func loadVector(_ number: UInt8, _ base: Register, _ displacement: Int32) {
        vector(0x10, number, base, displacement)
    }
    mutating func storeVector(_ number: UInt8, _ base: Register, _ displacement: Int32) {
        vector(0x11, number, base, displacement)
    }
    private mutating func vector(_ opcode: UInt8, _ number: UInt8, _ base: Register, _ displacement: Int32) {
        rex(wide: false, reg: number, rm: base.rawValue)
        raw(0x0f, opcode)
        memory(number, base, displacement)
    }

    /// The interrupt descriptor table, by its limit and base at an address.
    mutating func loadInterruptTable(_ base: Register) {
        rex(wide: false, reg: 3, rm: base.rawValue)
        raw(0x0f, 0x01)
        memory(3, base, 0)
    }

    // MARK: The end

    /// The program, with every label in its place.
    func assembled() -> [UInt8] {
        var result = bytes
        for (at, label) in fixups {
            guard let target = places[label] else { preconditionFailure("a label has no place") }
            let bits = UInt32(bitPattern: Int32(target - at - 4))
            for index in 0..<4 { result[at + index] = UInt8(truncatingIfNeeded: bits >> (8 * index)) }
        }
        return result
    }
}
