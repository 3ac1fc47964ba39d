import BatonRuntime

/// A debugger's stub on a chardev: gdb's remote protocol, for one client at a time. A thread of gdb's is a CPU, by its
/// index plus one.
///
/// As in QEMU a client that comes stops the guest, and one that goes without a word leaves it stopped; its points go with
/// it. The session goes on in the next process, as a monitor's does, with points that hold before the guest runs there.
///
/// Source: gdb's manual, "Remote Protocol".
final class GDBStub: ResumableMonitor {
    unowned let vm: VirtualMachine
    let chardev: Chardev
    let target: any DebugTarget
    let number = 0
    /// It says nothing before the guest is this process' own: what it could say is the guest's.
    var answersBeforeLoad: Bool { false }

    var session = GDBSession()
    private var framing = GDBFraming()
    private var output = OutputQueue()
    /// Received and not looked at yet.
    private var input: [UInt8] = []
    var isExecuting = false
    private var isPutOff = false
    /// A session of the process before, which `.opened` does not end.
    private var isResuming: Bool

    private static let outputHighWater = 64 << 10
    private static let inputLimit = 4096

    /// - Throws: QEMU's error when the chardev is in use.
    init(vm: VirtualMachine, chardev: Chardev, target: any DebugTarget) throws(VMMError) {
        self.vm = vm
        self.chardev = chardev
        self.target = target
        isResuming = MonitorUpdate.isTakingOver(vm)
        if let state = try MonitorUpdate.session(on: chardev, number: number, vm: vm) { try restore(state) }
        vm.onRunStateChange { [weak self] state in self?.runStateChanged(state) }
        try chardev.attach(self)
    }

    /// The stub goes, and with it what it has set.
    func end() {
        session = GDBSession()
        applyPoints()
        applyActions()
        chardev.detach()
    }

    var cpuCount: Int { vm.accelerator?.cpus.count ?? 0 }

    // MARK: Chardev

    func chardevCanReceive() -> Int {
        isResuming || isExecuting || isPutOff || output.count > Self.outputHighWater
            ? 0 : Self.inputLimit - min(Self.inputLimit, input.count)
    }

    func chardevReceive(_ bytes: UnsafeRawBufferPointer) {
        input.append(contentsOf: bytes)
        takeInput()
    }

    func chardevWritable() {
        output.drain(into: chardev)
        takeInput()
        if chardevCanReceive() > 0 { chardev.acceptInput() }
    }

    func chardevEvent(_ event: ChardevEvent) {
        switch event {
        case .opened:
            if isResuming { return }
            endSession()
            // What it has at its first start is what a debugger wants to see.
            if vm.runState == .prelaunch {
                do throws(VMMError) { try vm.resetIfNew() } catch { Report.error(error.prefixed("gdbstub")) }
            }
            if vm.isRunning { vm.stop() }
        case .closed:
            // A session that is taken over ends with its own state.
            if !isResuming { endSession() }
        default: break
        }
    }

    private func endSession() {
        session = GDBSession()
        framing = GDBFraming()
        output.removeAll()
        input = []
        applyPoints()
        applyActions()
    }

    private func takeInput() {
        guard !isExecuting, !isPutOff, !isResuming else { return }
        var next = 0
        // What follows a packet that is being carried out waits: it may replace this process.
        while next < input.count, !isExecuting, output.count <= Self.outputHighWater {
            let event = framing.feed(input[next])
            next += 1
            guard let event else { continue }
            input.removeFirst(next)
            next = 0
            handle(event)
            // A client may send hundreds at once.
            if !input.isEmpty, !vm.loop.hasTimeLeft { return putOff() }
        }
        input.removeFirst(min(next, input.count))
    }

    /// Goes on with the input in a later turn.
    private func putOff() {
        isPutOff = true
        vm.loop.postpone { [weak self] in
            guard let self else { return }
            isPutOff = false
            takeInput()
            if chardevCanReceive() > 0 { chardev.acceptInput() }
        }
    }

    private func handle(_ event: GDBFraming.Event) {
        switch event {
        case .interrupt: if vm.isRunning { vm.stop() }
        case .repeatLast: if !session.isReliable { send(GDBFraming.frame(session.lastPacket)) }
        case .damaged: if !session.isReliable { send([UInt8(ascii: "-")]) }
        case .tooLong:
            acknowledge()
            reply(.invalid)
        case .packet(let bytes):
            acknowledge()
            // As in QEMU: somebody else has let it run.
            if vm.isRunning { vm.stop() }
            execute(bytes)
        }
    }

    private func acknowledge() { if !session.isReliable { send([UInt8(ascii: "+")]) } }

    private func send(_ bytes: [UInt8]) {
        output.append(bytes)
        output.drain(into: chardev)
    }

    /// Sends a packet, whose text has no byte that must be escaped.
    func reply(_ text: String) { reply(bytes: Array(text.utf8)) }

    func reply(_ error: GDBError) { reply(error.rawValue) }

    /// Sends a packet, with its escapes.
    func reply(bytes: [UInt8]) {
        session.lastPacket = bytes
        send(GDBFraming.frame(bytes))
    }

    // MARK: Run state

    func applyPoints() { target.setPoints(session.points) }

    func applyActions() {
        target.setActions(
            session.actions, withoutInterrupts: session.stepFlags & GDBSession.withoutInterrupts != 0)
    }

    /// Lets the guest run, and owes the debugger why it stops.
    func run(_ actions: [Int: DebugAction]) {
        session.actions = actions
        session.owesStop = true
        applyActions()
        do throws(VMMError) {
            if let refusal = vm.resetRefusal { throw refusal }
            try vm.start()
        } catch {
            reply("O" + GDBText.hex("\(error.description)\n".utf8))
            reportStop(.paused)
        }
    }

    private func runStateChanged(_ state: RunState) {
        guard session.owesStop, !isResuming else { return }
        switch state {
        // The guest goes on, here or in another process.
        case .running, .saveVM, .restoreVM, .finishMigrate, .inmigrate, .postmigrate, .prelaunch: break
        case .shutdown:
            // Unless the VMM ends, which says so itself.
            vm.loop.later { [weak self] in
                guard let self, session.owesStop, vm.runState == .shutdown else { return }
                reportStop(.shutdown)
            }
        default: reportStop(state)
        }
    }

    /// Answers what let the guest run.
    private func reportStop(_ state: RunState) {
        let stop = state == .debug ? target.stop : nil
        session.owesStop = false
        session.actions = [:]
        if let stop {
            session.cpu = stop.cpu
            session.runCPU = stop.cpu
        }
        applyActions()
        var text = "T" + GDBText.hex([Self.signal(of: state)]) + "thread:\(Self.thread(session.cpu));"
        if let watchpoint = stop?.watchpoint {
            let names: [DebugPoint.Kind: String] = [.readWatchpoint: "rwatch", .accessWatchpoint: "awatch"]
            text += "\(names[watchpoint.point.kind] ?? "watch"):\(String(watchpoint.address, radix: 16));"
        }
        reply(text)
    }

    /// gdb's numbers of signals.
    private static func signal(of state: RunState) -> UInt8 {
        switch state {
        case .debug: 5
        case .paused: 2
        case .shutdown: 3
        case .internalError, .guestPanicked: 6
        case .watchdog: 14
        case .ioError: 23
        default: 0
        }
    }

    /// A CPU as gdb's thread.
    static func thread(_ cpu: Int) -> String { GDBText.hex([UInt8(truncatingIfNeeded: cpu + 1)]) }

    /// The VMM ends.
    func sayEnd(status: Int32) {
        guard session.owesStop else { return }
        session.owesStop = false
        reply("W" + GDBText.hex([UInt8(truncatingIfNeeded: status)]))
    }

    // MARK: Update

    func handOver() -> StateWriter {
        var writer = StateWriter()
        writer.put("mode", "gdb")
        var session = session
        session.owesReply = isExecuting || session.owesReply
        session.save(to: &writer)
        writer.put("input", bytes: framing.unfinished + input)
        writer.put("output", bytes: output.contents)
        return writer
    }

    private func restore(_ state: StateReader) throws(VMMError) {
        // A monitor's session is no debugger's.
        guard try state.string("mode") == "gdb" else { return }
        session = try GDBSession(state, cpuCount: cpuCount)
        input = try state.bytes("input")
        output.append(try state.bytes("output"))
        applyPoints()
        applyActions()
    }

    func takeOver(_ state: StateReader?) throws(VMMError) {
        endSession()
        if let state { try restore(state) }
    }

    func resume() {
        isResuming = false
        if session.owesReply {
            session.owesReply = false
            reply("OK")
        } else {
            output.drain(into: chardev)
        }
        vm.loop.later { [weak self] in
            guard let self else { return }
            takeInput()
            if chardevCanReceive() > 0 { chardev.acceptInput() }
        }
    }

    func takenBack(answered: Bool) {}
}

/// What a packet that is refused is answered with: numbers of Linux' errors, which gdb shows.
enum GDBError: String {
    case fault = "E14"
    case invalid = "E22"
    case noSpace = "E28"
}
