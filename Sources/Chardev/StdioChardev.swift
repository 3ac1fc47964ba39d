import BatonRuntime
import Glibc

/// `stdio`: the standard input and output of the process, a terminal in raw
/// mode when it is one.
public final class StdioChardev: StreamChardev {
    /// Whether Ctrl-C and its like raise signals (`signal=on`).
    public let signals: Bool
    private nonisolated(unsafe) static var inUse = false

    /// - Throws: QEMU's error when another chardev has the standard input.
    public convenience init(id: String, loop: EventLoop, signals: Bool) throws(VMMError) {
        try self.init(id: id, loop: loop, signals: signals, heritage: nil, held: false)
    }

    init(id: String, loop: EventLoop, signals: Bool, heritage: ChardevHeritage?, held: Bool) throws(VMMError) {
        guard !Self.inUse else { throw VMMError("cannot use stdio by multiple character devices") }
        self.signals = signals
        super.init(id: id, backend: "stdio", loop: loop, held: held)
        Self.inUse = true
        StandardTerminal.save(as: try heritage?.bytes("terminal"))
        // Until the commit the terminal is the process before's.
        if !held { StandardTerminal.enterRawMode(signals: signals) }
        try connect(
            input: 0, output: 1, unsent: try heritage?.bytes("unsent") ?? [], inherited: heritage != nil)
    }

    public override var survivesUpdate: Bool { true }

    /// The descriptors survive anyway; what they have not taken must too.
    public override func handOver(to cpr: any MachineHandover) throws(VMMError) {
        guard !reopensOnCpr, isOpen else { return }
        cpr.handOver(self) {
            // Another's process has a standard output of its own.
            $0.put("unsent", bytes: cpr.monitorSockets == .handedOver ? unsentBytes : [])
            $0.put("terminal", bytes: StandardTerminal.savedModes)
        }
    }

    public override func peerClosed() { closeInput() }
    public override func outputFailed() { disconnect() }
    public override func closeDescriptors(input: Int32, output: Int32) {}

    public override func shutDown() {
        disconnect()
        StandardTerminal.restore()
        Self.inUse = false
    }
    public override func takeOver(_ changes: PartChanges) throws(VMMError) {
        guard let state = changes.state else { return }
        _ = try state.string("backend")
        _ = try state.bytes("terminal")
        takeOver(unsent: try state.bytes("unsent"))
    }

    public override func committed() {
        StandardTerminal.enterRawMode(signals: signals)
        super.committed()
    }

    public override func prepareForExec() {
        if reopensOnCpr { StandardTerminal.restore() }
    }
    public override func execFailed() {
        guard StandardTerminal.isLost else { return StandardTerminal.enterRawMode(signals: signals) }
        // Whoever started this VMM has the terminal again, and reads from it.
        if isatty(1) != 0 { disconnect() } else { closeInput() }
        StandardTerminal.leave()
        Report.warning("chardev '\(id)': the terminal belongs to the session that this process has left")
    }
}

/// The modes of the terminal on standard input, put back at every exit.
enum StandardTerminal {
    private nonisolated(unsafe) static var saved: termios?
    private nonisolated(unsafe) static var savedFlags: [(fd: Int32, flags: Int32)] = []
    private nonisolated(unsafe) static var registered = false
    /// Whether it is the terminal of this process' session.
    private nonisolated(unsafe) static var isControlling = false

    /// Whether it is this process that has changed the modes.
    private nonisolated(unsafe) static var isChanged = false

    /// The modes to put back at the end, for the next process: of the terminal,
    /// if it is one, and the flags of standard input and output.
    static var savedModes: [UInt8] {
        var flags: [Int32] = ([0, 1] as [Int32]).map { fd in savedFlags.first { $0.fd == fd }?.flags ?? -1 }
        var result = withUnsafeBytes(of: &flags[0]) { Array($0) } + withUnsafeBytes(of: &flags[1]) { Array($0) }
        if let saved { result += withUnsafeBytes(of: saved) { Array($0) } }
        return result
    }

    /// Keeps the modes that are to be put back.
    /// - Parameter before: what the process before has kept, which has changed them since.
    static func save(as before: [UInt8]? = nil) {
        if let before, adopt(before) { return }
        savedFlags = ([0, 1] as [Int32]).compactMap { fd in
            let flags = fcntl(fd, F_GETFL)
            return flags >= 0 ? (fd, flags) : nil
        }
        var mode = termios()
        saved = tcgetattr(0, &mode) == 0 ? mode : nil
        finishSaving()
    }

    private static func adopt(_ bytes: [UInt8]) -> Bool {
        let flagsSize = 2 * MemoryLayout<Int32>.size
        guard [flagsSize, flagsSize + MemoryLayout<termios>.size].contains(bytes.count) else { return false }
        bytes.withUnsafeBytes { bytes in
            savedFlags = ([0, 1] as [Int32]).compactMap { fd in
                let flags = bytes.loadUnaligned(fromByteOffset: Int(fd) * MemoryLayout<Int32>.size, as: Int32.self)
                return flags >= 0 ? (fd, flags) : nil
            }
            saved =
                bytes.count > flagsSize
                ? bytes.loadUnaligned(fromByteOffset: flagsSize, as: termios.self) : nil
        }
        finishSaving()
        return true
    }

    private static func finishSaving() {
        isControlling = tcgetsid(0) >= 0
        guard !registered else { return }
        registered = true
        _ = atexit { StandardTerminal.restore() }
    }

    /// As QEMU's `term_init`: no echo, no line editing, output processing kept.
    static func enterRawMode(signals: Bool) {
        isChanged = true
        for (fd, flags) in savedFlags { _ = fcntl(fd, F_SETFL, flags | O_NONBLOCK) }
        guard var mode = saved else { return }
        mode.c_iflag &= ~tcflag_t(IGNBRK | BRKINT | PARMRK | ISTRIP | INLCR | IGNCR | ICRNL | IXON)
        mode.c_oflag |= tcflag_t(OPOST)
        mode.c_lflag &= ~tcflag_t(ECHO | ECHONL | ICANON | IEXTEN)
        mode.c_cflag = mode.c_cflag & ~tcflag_t(CSIZE | PARENB) | tcflag_t(CS8)
        if !signals { mode.c_lflag &= ~tcflag_t(ISIG) }
        withUnsafeMutableBytes(of: &mode.c_cc) {
            $0[Int(VMIN)] = 1
            $0[Int(VTIME)] = 0
        }
        tcsetattr(0, TCSANOW, &mode)
    }

    /// Whether the process has left the session that the terminal belongs to.
    static var isLost: Bool { isControlling && tcgetsid(0) < 0 }

    /// Puts the modes back for its owner, and lets go of it: for this process,
    /// and for the next one, it is /dev/null.
    static func leave() {
        let outputIsTerminal = isatty(1) != 0
        if !outputIsTerminal { savedFlags.removeAll { $0.fd == 1 } }
        restore()
        (saved, savedFlags, isControlling) = (nil, [], false)
        let null = open("/dev/null", O_RDWR | O_CLOEXEC)
        guard null > 2 else { return }
        dup2(null, 0)
        if outputIsTerminal { dup2(null, 1) }
        close(null)
    }

    static func restore() {
        guard isChanged else { return }
        isChanged = false
        for (fd, flags) in savedFlags { _ = fcntl(fd, F_SETFL, flags) }
        guard var mode = saved else { return }
        tcsetattr(0, TCSANOW, &mode)
    }
}
