import BatonRuntime
import CBaton
import Glibc

/// `pty`: a pseudo-terminal whose slave anyone may open, close and open again.
/// Output while nobody has it open is dropped.
public final class PTYChardev: StreamChardev {
    /// The master end, open for the life of the chardev. Owned.
    public private(set) var masterFD: Int32
    /// `/dev/pts/N`.
    public let slavePath: String
    /// Becomes readable when someone opens the slave; -1 where inotify fails.
    private var openWatch: Int32 = -1
    private var openTimer: EventLoop.Timer?

    /// Opens a new pseudo-terminal.
    public convenience init(id: String, loop: EventLoop, held: Bool = false) throws(VMMError) {
        var path = [CChar](repeating: 0, count: 128)
        let master = path.withUnsafeMutableBufferPointer { cbaton_open_pty($0.baseAddress, $0.count) }
        guard master >= 0 else { throw .system("Failed to create PTY") }
        let bytes = path.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }
        try self.init(
            id: id, loop: loop, adopting: master, slavePath: String(decoding: bytes, as: UTF8.self), held: held)
    }

    /// Takes over the pseudo-terminal of the process before.
    convenience init(id: String, loop: EventLoop, heritage: ChardevHeritage, held: Bool) throws(VMMError) {
        guard let master = heritage.claim("master") else { throw heritage.mismatch("there") }
        let before = try heritage.state.string("slave-path")
        var path = [CChar](repeating: 0, count: 128)
        let code = path.withUnsafeMutableBufferPointer { cbaton_pty_name(master, $0.baseAddress, $0.count) }
        let bytes = path.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }
        guard code == 0, bytes == Array(before.utf8) else { throw heritage.mismatch("the master of \(before)") }
        try FD.setNonBlocking(master, true)
        try self.init(
            id: id, loop: loop, adopting: master, slavePath: before, unsent: try heritage.bytes("unsent"),
            inherited: true, held: held)
    }

    /// In a trial: checks that everything was handed over. What it has in place
    /// of the master is no terminal.
    static func checkStandIn(_ heritage: ChardevHeritage) throws(VMMError) {
        guard let standIn = heritage.claim("master") else { throw heritage.mismatch("there") }
        close(standIn)
        _ = try heritage.state.string("slave-path")
        _ = try heritage.bytes("unsent")
    }

    /// Takes over an open, non-blocking master.
    public init(
        id: String, loop: EventLoop, adopting master: Int32, slavePath: String, unsent: [UInt8] = [],
        inherited: Bool = false, held: Bool = false
    ) throws(VMMError) {
        masterFD = master
        self.slavePath = slavePath
        super.init(id: id, backend: "pty", loop: loop, held: held)
        openWatch = cbaton_watch_opens(slavePath)
        if openWatch >= 0 {
            try loop.watch(openWatch, .readable) { [weak self] _ in self?.slaveOpened() }
        }
        try waitForSlave(unsent: unsent, inherited: inherited)
    }

    public override var survivesUpdate: Bool { true }

    public override func handOver(to cpr: any MachineHandover) throws(VMMError) {
        guard !reopensOnCpr, masterFD >= 0 else { return }
        cpr.save(masterFD, of: self, as: "master")
        cpr.handOver(self) {
            $0.put("slave-path", slavePath)
            $0.put("unsent", bytes: unsentBytes)
        }
    }

    public override func takeOver(_ changes: PartChanges) throws(VMMError) {
        guard let state = changes.state else { return }
        _ = try state.string("backend")
        _ = try state.string("slave-path")
        let unsent = try state.bytes("unsent")
        if !isOpen { try waitForSlave(inherited: true) }
        if isOpen { takeOver(unsent: unsent) }
    }

    public override var filename: String { "pty:\(slavePath)" }

    private func slaveOpened() {
        withUnsafeTemporaryAllocation(byteCount: 4096, alignment: 8) { buffer in
            while read(openWatch, buffer.baseAddress, buffer.count) > 0 {}
        }
        if !isOpen { try? waitForSlave() }
    }

    /// Connects when the slave is open now, else at the next opening.
    private func waitForSlave(unsent: [UInt8] = [], inherited: Bool = false) throws(VMMError) {
        var state = pollfd(fd: masterFD, events: Int16(POLLIN), revents: 0)
        guard masterFD >= 0, Glibc.poll(&state, 1, 0) >= 0 else { return }
        if state.revents & Int16(POLLHUP) == 0 {
            try connect(input: masterFD, output: masterFD, unsent: unsent, inherited: inherited)
        } else if openWatch < 0 {
            openTimer = loop.schedule(at: EventLoop.now + 1_000_000_000) { [weak self] in try? self?.waitForSlave() }
        }
    }

    /// The slave was closed; the master stays.
    public override func peerClosed() {
        disconnect()
        try? waitForSlave()
    }
    public override func outputFailed() { peerClosed() }
    public override func closeDescriptors(input: Int32, output: Int32) {}

    public override func shutDown() {
        disconnect()
        openTimer?.cancel()
        if openWatch >= 0 {
            loop.unwatch(openWatch)
            close(openWatch)
            openWatch = -1
        }
        if masterFD >= 0 {
            close(masterFD)
            masterFD = -1
        }
    }
}
