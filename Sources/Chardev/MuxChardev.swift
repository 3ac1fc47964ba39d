import BatonRuntime

/// `mux=on`: several front ends on one back end. All may write; input goes to
/// the one that has the focus, which Ctrl-A c moves on.
public final class MuxChardev: Chardev, ChardevFrontend {
    /// Front ends on one multiplexer, as in QEMU.
    public static let frontendLimit = 4
    /// Input kept for a front end that is not ready, so that an escape to the
    /// monitor or to the exit still gets through.
    private static let pendingLimit = 4096
    private static let escape: UInt8 = 1

    /// What is multiplexed.
    public let base: Chardev
    private struct Client {
        weak var frontend: (any ChardevFrontend)?
        var pending: [UInt8] = []
    }
    private var clients: [Client] = []
    private var focus = 0
    private var sawEscape = false
    /// Whether input for devices waits for the commit of an update.
    private var holdsDevices = false
    /// Input of the process before, by front end.
    private var inheritedInput: [Int: [UInt8]] = [:]
    private let quit: () -> Void

    /// - Parameter quit: called for Ctrl-A x.
    public init(id: String, base: Chardev, quit: @escaping () -> Void) throws(VMMError) {
        self.base = base
        self.quit = quit
        super.init(id: id, backend: "mux")
        try base.attach(self)
    }

    public override var filename: String { "mux" }
    public override var isShared: Bool { true }
    public override var isOpen: Bool { base.isOpen }

    /// The first front end gets the focus.
    public override func attach(_ frontend: any ChardevFrontend) throws(VMMError) {
        clients.removeAll { $0.frontend == nil }
        guard clients.count < Self.frontendLimit else {
            throw VMMError("too many users of multiplexed chardev '\(id)' (maximum is \(Self.frontendLimit))")
        }
        let number = clients.count
        clients.append(Client(frontend: frontend, pending: inheritedInput.removeValue(forKey: number) ?? []))
        if isOpen { frontend.chardevEvent(.opened) }
        frontend.chardevEvent(number == focus ? .focusGained : .focusLost)
        acceptInput()
    }

    public override func write(_ bytes: UnsafeRawBufferPointer) -> Int { base.write(bytes) }
    public override func acceptInput() {
        deliverPending()
        base.acceptInput()
    }
    public override func shutDown() { base.shutDown() }
    public override func prepareForExec() { base.prepareForExec() }
    public override func execFailed() { base.execFailed() }

    // MARK: Update

    public override var isInherited: Bool { base.isInherited }

    public override var survivesUpdate: Bool { base.survivesUpdate }

    public override func handOver(to cpr: any MachineHandover) throws(VMMError) {
        try base.handOver(to: cpr)
        guard !reopensOnCpr else { return }
        cpr.handOver(self) { writer in
            writer.put("focus", UInt64(focus))
            writer.put("escape", sawEscape)
            for (number, client) in clients.enumerated() { writer.put("\(number).input", bytes: client.pending) }
        }
    }

    public override func takeOver(_ changes: PartChanges) throws(VMMError) {
        guard let state = changes.state else { return }
        _ = try state.string("backend")
        let newFocus = Int(try state.unsigned("focus", in: 0...UInt64(Self.frontendLimit - 1)))
        if newFocus != focus {
            if clients.indices.contains(focus) { clients[focus].frontend?.chardevEvent(.focusLost) }
            focus = newFocus
            if clients.indices.contains(focus) { clients[focus].frontend?.chardevEvent(.focusGained) }
        }
        sawEscape = try state.bool("escape")
        for number in clients.indices {
            clients[number].pending = try ChardevHeritage.bytes("\(number).input", of: state)
        }
    }

    public override func forgetConnection(in cpr: any MachineHandover) { base.forgetConnection(in: cpr) }

    /// Goes on where the process before left off.
    func inherit(_ heritage: ChardevHeritage) throws(VMMError) {
        focus = Int(try heritage.state.unsigned("focus", in: 0...UInt64(Self.frontendLimit - 1)))
        sawEscape = try heritage.state.bool("escape")
        for number in 0..<Self.frontendLimit { inheritedInput[number] = try heritage.bytes("\(number).input") }
    }

    /// Keeps input from devices until the commit.
    func hold() { holdsDevices = true }
    public override func release() { base.release() }
    public override func committed() {
        holdsDevices = false
        // The new command line may have fewer front ends.
        if !clients.indices.contains(focus), let first = clients.first?.frontend {
            focus = 0
            first.chardevEvent(.focusGained)
        }
        base.committed()
        acceptInput()
    }

    // MARK: Front end of the base

    public func chardevCanReceive() -> Int {
        guard clients.indices.contains(focus) else { return 0 }
        return max(0, Self.pendingLimit - clients[focus].pending.count)
    }

    public func chardevReceive(_ bytes: UnsafeRawBufferPointer) {
        for byte in bytes {
            if sawEscape {
                sawEscape = false
                command(byte)
            } else if byte == Self.escape {
                sawEscape = true
            } else {
                enqueue(byte)
            }
        }
        deliverPending()
    }

    public func chardevEvent(_ event: ChardevEvent) {
        for client in clients { client.frontend?.chardevEvent(event) }
    }
    public func chardevWritable() {
        for client in clients { client.frontend?.chardevWritable() }
    }

    private func enqueue(_ byte: UInt8) {
        guard clients.indices.contains(focus) else { return }
        clients[focus].pending.append(byte)
    }

    private func deliverPending() {
        guard clients.indices.contains(focus), let frontend = clients[focus].frontend else { return }
        guard !holdsDevices || frontend.isMonitor else { return }
        while !clients[focus].pending.isEmpty {
            let room = min(frontend.chardevCanReceive(), clients[focus].pending.count)
            guard room > 0 else { return }
            let now = Array(clients[focus].pending.prefix(room))
            clients[focus].pending.removeFirst(room)
            now.withUnsafeBytes { frontend.chardevReceive($0) }
        }
    }

    private func command(_ byte: UInt8) {
        switch byte {
        case Self.escape: enqueue(byte)
        case UInt8(ascii: "h"), UInt8(ascii: "?"): show(Self.help)
        case UInt8(ascii: "x"):
            show("\(Report.program): Terminated\r\n")
            quit()
        case UInt8(ascii: "b"):
            if clients.indices.contains(focus) { clients[focus].frontend?.chardevEvent(.breakCondition) }
        case UInt8(ascii: "c"): switchFocus()
        default: break
        }
    }

    private func switchFocus() {
        guard clients.count > 1, clients.indices.contains(focus) else { return }
        deliverPending()
        clients[focus].frontend?.chardevEvent(.focusLost)
        focus = (focus + 1) % clients.count
        clients[focus].frontend?.chardevEvent(.focusGained)
    }

    private func show(_ text: String) {
        var text = text
        text.withUTF8 { _ = base.write(UnsafeRawBufferPointer($0)) }
    }

    private static let help = """
        \r\n\
        C-a h    print this help\r\n\
        C-a x    exit emulator\r\n\
        C-a b    send break (magic sysrq)\r\n\
        C-a c    switch between console and monitor\r\n\
        C-a C-a  sends C-a\r\n
        """
}
