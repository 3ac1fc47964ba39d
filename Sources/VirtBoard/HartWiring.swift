import InstructionSets

/// The wires between the board's interrupt controllers and the harts.
final class HartWiring: CLINTHarts {
    let harts: [any RISCVHart]

    init(_ harts: [any RISCVHart]) { self.harts = harts }

    var clintHartCount: Int { harts.count }
    var clintTime: UInt64 { harts[0].time }
    func clintTimeCompare(hart: Int) -> UInt64 { harts[hart].mtimecmp }
    func setClintTimeCompare(hart: Int, _ value: UInt64) { harts[hart].mtimecmp = value }
    func setClintSoftwareInterrupt(hart: Int, _ level: Bool) { harts[hart].setInterrupt(.machineSoftware, level) }

    /// The PLIC's contexts are M and S of each hart in turn.
    var contextCount: Int { 2 * harts.count }
    func setExternalInterrupt(context: Int, _ level: Bool) {
        harts[context / 2].setInterrupt(context % 2 == 0 ? .machineExternal : .supervisorExternal, level)
    }
}
