/// A hart's part of the Advanced Interrupt Architecture (Smaia and Ssaia 1.0,
/// without the hypervisor's): select registers, priorities of major
/// interrupts, and the interrupt files of machine and supervisor level.
public final class HartAIA {
    public let machineFile: IMSICFile
    public let supervisorFile: IMSICFile
    var machineSelect: UInt64 = 0
    var supervisorSelect: UInt64 = 0
    /// A byte an interrupt; 0 for the default order.
    var machinePriorities = [UInt8](repeating: 0, count: 64)
    var supervisorPriorities = [UInt8](repeating: 0, count: 64)

    static let selectMask: UInt64 = 0xfff
    private static let priorityRegisters: ClosedRange<UInt64> = 0x30...0x3f
    private static let fileRegisters: ClosedRange<UInt64> = 0x70...0xff
    /// Major interrupts whose priority can be chosen; that of the external
    /// interrupt is its message's.
    static let machineChoices: [Int] = [1, 3, 5, 7, 9]
    static let supervisorChoices: [Int] = [1, 5]
    /// The default order, the most urgent first: MEI, MSI, MTI, SEI, SSI, STI.
    static let order: [UInt64] = [11, 3, 7, 9, 1, 5]

    init(_ hart: Hart) {
        machineFile = IMSICFile { [unowned hart] in hart.setInterrupt(.machineExternal, $0) }
        supervisorFile = IMSICFile { [unowned hart] in hart.setInterrupt(.supervisorExternal, $0) }
    }

    func reset() {
        machineSelect = 0
        supervisorSelect = 0
        for index in 0..<64 {
            machinePriorities[index] = 0
            supervisorPriorities[index] = 0
        }
    }

    // MARK: Indirect registers

    /// - Returns: nil when there is no such register.
    func readSelected(machine: Bool) -> UInt64? {
        let select = machine ? machineSelect : supervisorSelect
        switch select {
        case HartAIA.priorityRegisters:
            guard select % 2 == 0 else { return nil }
            let first = Int(select - 0x30) * 4
            var value: UInt64 = 0
            for index in 0..<8 {
                let byte = machine ? machinePriorities[first + index] : supervisorPriorities[first + index]
                value |= UInt64(byte) << UInt64(8 * index)
            }
            return value
        case HartAIA.fileRegisters: return (machine ? machineFile : supervisorFile).read(select)
        default: return nil
        }
    }

    /// - Returns: false when there is no such register.
    func writeSelected(machine: Bool, _ value: UInt64) -> Bool {
        let select = machine ? machineSelect : supervisorSelect
        switch select {
        case HartAIA.priorityRegisters:
            guard select % 2 == 0 else { return false }
            let first = Int(select - 0x30) * 4
            for number in machine ? HartAIA.machineChoices : HartAIA.supervisorChoices
            where (first..<first + 8).contains(number) {
                let byte = UInt8(truncatingIfNeeded: value >> UInt64(8 * (number - first)))
                if machine { machinePriorities[number] = byte } else { supervisorPriorities[number] = byte }
            }
            return true
        case HartAIA.fileRegisters: return (machine ? machineFile : supervisorFile).write(select, value)
        default: return false
        }
    }

    // MARK: Priorities (AIA 1.0, 5.1 and 5.2)

    /// The most urgent of a set of major interrupts of a level, and its
    /// priority number: small is urgent, 256 is behind every external
    /// interrupt.
    func mostUrgent(_ pending: UInt64, machine: Bool) -> (number: UInt64, priority: UInt64)? {
        var best: (number: UInt64, priority: UInt64)?
        for number in HartAIA.order where pending >> number & 1 != 0 {
            let priority = priority(number, machine: machine)
            if best.map({ priority < $0.priority }) ?? true { best = (number, priority) }
        }
        return best
    }

    private func priority(_ number: UInt64, machine: Bool) -> UInt64 {
        if number == (machine ? 11 : 9) {
            // Without a message, such as for a bit that software set: the first.
            return max(1, (machine ? machineFile : supervisorFile).top)
        }
        let chosen = machine ? machinePriorities[Int(number)] : supervisorPriorities[Int(number)]
        return chosen == 0 ? 256 : UInt64(chosen)
    }

    /// The value of mtopi or stopi.
    func topInterrupt(_ pending: UInt64, machine: Bool) -> UInt64 {
        guard let (number, priority) = mostUrgent(pending, machine: machine) else { return 0 }
        return number << 16 | min(priority, 255)
    }
}

/// The CSRs of Smaia and Ssaia.
extension UnsafeMutablePointer where Pointee == HartState {
    private var aia: HartAIA? { pointee.owner?._withUnsafeGuaranteedRef { $0.aia } }

    private static func topExternal(_ file: IMSICFile) -> UInt64 { file.top << 16 | file.top }

    /// Bits of mip that mvip shows: mvien is zero, so they are the same bits.
    private var virtualBits: UInt64 { pointee.usesSupervisorTimer ? 1 << 1 | 1 << 9 : 1 << 1 | 1 << 5 | 1 << 9 }

    /// - Returns: nil when there is no such CSR.
    func readAIA(_ number: Int) -> UInt64? {
        guard pointee.hasAIA, let aia else { return nil }
        switch number {
        case CSR.siselect: return aia.supervisorSelect
        case CSR.sireg: return aia.readSelected(machine: false)
        case CSR.stopei: return Self.topExternal(aia.supervisorFile)
        case CSR.stopi: return aia.topInterrupt(pointee.pendingBits & pointee.mie & pointee.mideleg, machine: false)
        case CSR.miselect: return aia.machineSelect
        case CSR.mireg: return aia.readSelected(machine: true)
        case CSR.mtopei: return Self.topExternal(aia.machineFile)
        case CSR.mtopi: return aia.topInterrupt(pointee.pendingBits & pointee.mie & ~pointee.mideleg, machine: true)
        // No interrupt is virtual.
        case CSR.mvien: return 0
        case CSR.mvip: return pointee.mip & virtualBits
        default: return nil
        }
    }

    /// - Returns: nil when the write is an illegal instruction.
    func writeAIA(_ number: Int, _ value: UInt64) -> CSREffect? {
        guard pointee.hasAIA, let aia else { return nil }
        switch number {
        case CSR.siselect: aia.supervisorSelect = value & HartAIA.selectMask
        case CSR.sireg: if !aia.writeSelected(machine: false, value) { return nil }
        // Whatever is written, the top message is taken.
        case CSR.stopei: aia.supervisorFile.claim()
        case CSR.miselect: aia.machineSelect = value & HartAIA.selectMask
        case CSR.mireg: if !aia.writeSelected(machine: true, value) { return nil }
        case CSR.mtopei: aia.machineFile.claim()
        case CSR.mvien: break
        case CSR.mvip: pointee.mip = pointee.mip & ~virtualBits | value & virtualBits
        default: return nil
        }
        return .interrupts
    }
}
