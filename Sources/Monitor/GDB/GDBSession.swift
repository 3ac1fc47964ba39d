import BatonRuntime

/// What a debugger has told its stub, and what the stub owes it: all of a session that another process must know to go on
/// with it.
struct GDBSession {
    /// Packets are not acknowledged (`QStartNoAckMode`).
    var isReliable = false
    /// The guest runs at the debugger's word, which waits for why it stops.
    var owesStop = false
    /// What has been asked for is still being carried out (`qRcmd`).
    var owesReply = false
    /// The CPU that registers and memory are read of (`Hg`), from 0.
    var cpu = 0
    /// The CPU that steps (`Hc`).
    var runCPU = 0
    /// Addresses of memory are guest-physical ones (`Qqemu.PhyMemMode`).
    var isPhysical = false
    var points: Set<DebugPoint> = []
    /// What the CPUs do as long as the guest runs.
    var actions: [Int: DebugAction] = [:]
    /// The bits of `qqemu.sstep`.
    var stepFlags = GDBSession.stepsAtAll | GDBSession.withoutInterrupts
    /// The last packet, for a `-`.
    var lastPacket: [UInt8] = []

    static let stepsAtAll: UInt64 = 1
    static let withoutInterrupts: UInt64 = 2

    /// Points of a session, at most.
    static let pointLimit = 4096

    init() {}

    // MARK: Update

    func save(to writer: inout StateWriter) {
        writer.put("reliable", isReliable)
        writer.put("owes-stop", owesStop)
        writer.put("owes-reply", owesReply)
        writer.put("cpu", UInt64(cpu))
        writer.put("run-cpu", UInt64(runCPU))
        writer.put("physical", isPhysical)
        writer.put("points", points.flatMap { [UInt64($0.kind.rawValue), $0.address, $0.length] })
        writer.put("actions", actions.flatMap { [UInt64($0.key), $0.value.rawValue] })
        writer.put("step-flags", stepFlags)
        writer.put("last-packet", bytes: lastPacket)
    }

    /// - Parameter cpuCount: of the machine.
    init(_ state: StateReader, cpuCount: Int) throws(VMMError) {
        let cpus = 0...UInt64(max(0, cpuCount - 1))
        isReliable = try state.bool("reliable")
        owesStop = try state.bool("owes-stop")
        owesReply = try state.bool("owes-reply")
        cpu = Int(try state.unsigned("cpu", in: cpus))
        runCPU = Int(try state.unsigned("run-cpu", in: cpus))
        isPhysical = try state.bool("physical")
        stepFlags = try state.unsigned("step-flags", in: 0...3)
        lastPacket = try state.bytes("last-packet")
        let points = try state.array("points", count: 0...Self.pointLimit * 3)
        let actions = try state.array("actions", count: 0...cpuCount * 2)
        guard points.count % 3 == 0, actions.count % 2 == 0 else { throw VMMError("a debugger's session is damaged") }
        for index in stride(from: 0, to: points.count, by: 3) {
            guard let kind = Int(exactly: points[index]).flatMap(DebugPoint.Kind.init) else {
                throw VMMError("a debugger's session has a point of the unknown kind \(points[index])")
            }
            self.points.insert(DebugPoint(kind: kind, address: points[index + 1], length: points[index + 2]))
        }
        for index in stride(from: 0, to: actions.count, by: 2) {
            guard cpus.contains(actions[index]), let action = DebugAction(rawValue: actions[index + 1]) else {
                throw VMMError("a debugger's session has an unknown action")
            }
            self.actions[Int(actions[index])] = action
        }
    }
}
