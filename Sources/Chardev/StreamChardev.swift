import BatonRuntime
import Glibc

/// A back end on file descriptors: what pty, socket and stdio have in common.
///
/// Reads only as much as the front end takes, and keeps up to `unsentLimit`
/// bytes that the peer has not taken yet; what is more is refused to the front
/// end until there is room. Never blocks on a pipe, socket or terminal.
open class StreamChardev: Chardev {
    /// Bytes kept for a slow peer.
    public static let unsentLimit = 64 << 10

    public let loop: EventLoop
    /// What is read from and written to, the same for most; -1 when there is
    /// no peer. Owned unless the subclass says otherwise in `closeDescriptors`.
    public private(set) var inputFD: Int32 = -1
    public private(set) var outputFD: Int32 = -1

    private var unsent: [UInt8] = []
    private var unsentStart = 0
    /// The front end waits for `chardevWritable`.
    private var owesWritable = false
    private var isReading = false
    private var hungUp = false
    private var writeFailed = false
    /// Descriptors that epoll refuses (files, /dev/null) are always ready.
    private var inputIsAlwaysReady = false
    private var outputIsAlwaysReady = false
    private var readScheduled = false
    /// No byte moves yet, see `Chardev.release`.
    public private(set) var isHeld: Bool
    private var isOutputHeld = false
    private var inheritedConnection = false
    /// Tells one connection from the next on the same descriptor number.
    private var connection = 0
    private static let ignoreBrokenPipes: Void = { _ = signal(SIGPIPE, SIG_IGN) }()

    public init(id: String, backend: String, loop: EventLoop, held: Bool = false) {
        self.loop = loop
        isHeld = held
        _ = Self.ignoreBrokenPipes
        super.init(id: id, backend: backend)
    }

    open override var isOpen: Bool { inputFD >= 0 || outputFD >= 0 }

    open override var descriptors: [Int32] { [inputFD, outputFD].filter { $0 >= 0 } }

    /// Bytes taken from the front end that the peer has not taken yet.
    public var unsentBytes: [UInt8] { Array(unsent[unsentStart...]) }

    // MARK: Connection

    /// Starts on open, non-blocking descriptors, and tells the front end.
    /// - Parameters:
    ///   - unsent: bytes to send before all else.
    ///   - inherited: the peer knows the process before.
    public func connect(input: Int32, output: Int32, unsent: [UInt8] = [], inherited: Bool = false) throws(VMMError) {
        precondition(!isOpen)
        inheritedConnection = inherited
        connection += 1
        inputFD = input
        outputFD = output
        self.unsent = unsent
        unsentStart = 0
        hungUp = false
        writeFailed = false
        inputIsAlwaysReady = false
        outputIsAlwaysReady = false
        isReading = hasFrontend
        try watchAll()
        announceOpened()
    }

    /// Closes the connection, and tells the front end.
    public func disconnect() {
        guard isOpen else { return }
        isOutputHeld = false
        flushUnsent()
        stopWatching()
        closeDescriptors(input: inputFD, output: outputFD)
        inputFD = -1
        outputFD = -1
        unsent = []
        unsentStart = 0
        inheritedConnection = false
        frontend?.chardevEvent(.closed)
        if owesWritable {
            owesWritable = false
            frontend?.chardevWritable()
        }
    }

    /// Stops reading while output goes on: the end of standard input.
    public func closeInput() {
        guard inputFD >= 0 else { return }
        if inputFD != outputFD { loop.unwatch(inputFD) }
        inputFD = -1
        frontend?.chardevEvent(.closed)
        updateWatches()
    }

    /// The peer is gone: every byte that it sent has been read.
    open func peerClosed() { disconnect() }
    open func closeDescriptors(input: Int32, output: Int32) {
        close(input)
        if output != input { close(output) }
    }
    /// Receives without blocking; as read(2).
    open func receive(_ fd: Int32, into buffer: UnsafeMutableRawBufferPointer) -> Int {
        read(fd, buffer.baseAddress, buffer.count)
    }
    /// Sends without blocking; as write(2).
    open func transmit(_ fd: Int32, _ bytes: UnsafeRawBufferPointer) -> Int {
        Glibc.write(fd, bytes.baseAddress, bytes.count)
    }

    // MARK: Update

    open override var isInherited: Bool { inheritedConnection && isOpen }

    /// In a process that has not taken its guest over: what the process before
    /// has not sent meanwhile.
    func takeOver(unsent: [UInt8]) {
        self.unsent = unsent
        unsentStart = 0
    }

    open override func release() {
        guard isHeld else { return }
        isHeld = false
        guard isOpen else { return }
        do throws(VMMError) { try watchAll() } catch { Report.warning("chardev '\(id)': \(error.message)") }
    }

    open override func holdOutput() { isOutputHeld = true }

    open override func releaseOutput() {
        guard isOutputHeld else { return }
        isOutputHeld = false
        if isOpen, !isHeld { flush() }
    }

    private var hasFrontend: Bool { frontend != nil }
    /// The front end does all that is done with the descriptor.
    private var isLent: Bool { frontend?.usesDescriptor == true }
    private func announceOpened() { frontend?.chardevEvent(.opened) }

    open override func didAttach() {
        guard isOpen else { return }
        if isLent {
            stopWatching()
            return announceOpened()
        }
        announceOpened()
        acceptInput()
    }

    open override func shutDown() { disconnect() }

    // MARK: Watching

    private func watchAll() throws(VMMError) {
        guard !isHeld, !isLent else { return }
        let current = connection
        if inputFD >= 0 {
            inputIsAlwaysReady =
                !(try watch(inputFD) { [weak self] events in
                    self?.ready(events, connection: current)
                })
        }
        if outputFD >= 0, outputFD != inputFD {
            outputIsAlwaysReady =
                !(try watch(outputFD) { [weak self] events in
                    self?.outputReady(connection: current, events)
                })
        } else {
            outputIsAlwaysReady = inputIsAlwaysReady
        }
        if inputIsAlwaysReady && isReading { scheduleRead() }
    }

    /// - Returns: false when the descriptor cannot be watched and never blocks.
    private func watch(_ fd: Int32, _ handler: @escaping (IOEvents) -> Void) throws(VMMError) -> Bool {
        var status = stat()
        if fstat(fd, &status) == 0, status.st_mode & S_IFMT == S_IFREG { return false }
        do throws(VMMError) {
            try loop.watch(fd, events(for: fd), handler)
            return true
        } catch {
            // /dev/null and its like have no readiness to wait for.
            guard status.st_mode & S_IFMT == S_IFCHR, isatty(fd) == 0 else { throw error }
            return false
        }
    }

    private func events(for fd: Int32) -> IOEvents {
        var events: IOEvents = []
        if fd == inputFD, isReading { events.insert(.readable) }
        if fd == outputFD, !isOutputHeld, unsentStart < unsent.count || owesWritable { events.insert(.writable) }
        return events
    }

    private func stopWatching() {
        if inputFD >= 0 { loop.unwatch(inputFD) }
        if outputFD >= 0 { loop.unwatch(outputFD) }
    }

    private func updateWatches() {
        if inputFD >= 0, !inputIsAlwaysReady { update(inputFD) }
        if outputFD >= 0, outputFD != inputFD, !outputIsAlwaysReady { update(outputFD) }
    }

    private func update(_ fd: Int32) {
        let wanted = events(for: fd)
        guard !isHeld, !isLent else { return }
        guard hungUp else { return loop.setEvents(fd, wanted) }
        // epoll reports a hang-up whether asked or not: it would spin while
        // nobody wants the bytes that are left.
        if wanted.isEmpty { return loop.unwatch(fd) }
        let current = connection
        if fd == inputFD {
            try? loop.watch(fd, wanted) { [weak self] in self?.ready($0, connection: current) }
        } else {
            try? loop.watch(fd, wanted) { [weak self] in self?.outputReady(connection: current, $0) }
        }
    }

    // MARK: Input

    open override func acceptInput() {
        guard inputFD >= 0, hasFrontend, !isReading, !isLent else { return }
        isReading = true
        if inputIsAlwaysReady { scheduleRead() } else { updateWatches() }
    }

    private func scheduleRead() {
        guard !readScheduled, !isHeld else { return }
        readScheduled = true
        let current = connection
        loop.later { [weak self] in
            guard let self else { return }
            readScheduled = false
            guard current == connection, inputFD >= 0, isReading else { return }
            readInput(events: .readable)
            if current == connection, inputFD >= 0, isReading { scheduleRead() }
        }
    }

    private func ready(_ events: IOEvents, connection current: Int) {
        guard current == connection else { return }
        if events.contains(.writable), inputFD == outputFD { flush() }
        guard current == connection, inputFD >= 0 else { return }
        guard !events.isDisjoint(with: [.readable, .hangup, .error]) else { return }
        if !events.isDisjoint(with: [.hangup, .error]) { hungUp = true }
        if isReading { readInput(events: events) } else { updateWatches() }
    }

    private func readInput(events: IOEvents) {
        let room = frontend?.chardevCanReceive() ?? 0
        guard room > 0, inputFD >= 0 else {
            isReading = false
            return updateWatches()
        }
        withUnsafeTemporaryAllocation(byteCount: min(room, 1 << 14), alignment: 16) { buffer in
            let count = retryingInterrupts { receive(inputFD, into: buffer) }
            if count > 0 {
                frontend?.chardevReceive(UnsafeRawBufferPointer(rebasing: buffer[..<count]))
            } else if count == 0 || !isTransientFailure() || (errno == EAGAIN && events.contains(.hangup)) {
                peerClosed()
            }
        }
    }

    // MARK: Output

    open override func write(_ bytes: UnsafeRawBufferPointer) -> Int {
        guard outputFD >= 0, !writeFailed else { return bytes.count }
        var done = 0
        if unsentStart == unsent.count, !isHeld, !isOutputHeld {
            guard let sent = send(bytes) else { return bytes.count }
            done = sent
        }
        if done < bytes.count {
            compact()
            let kept = min(bytes.count - done, Self.unsentLimit - unsent.count)
            if kept > 0 { unsent.append(contentsOf: bytes[done..<done + kept]) }
            done += max(kept, 0)
            if done < bytes.count { owesWritable = true }
            updateWatches()
        }
        return done
    }

    /// - Returns: how many bytes went out before it would have blocked; nil
    ///   when the peer is gone.
    private func send(_ bytes: UnsafeRawBufferPointer) -> Int? {
        var done = 0
        while done < bytes.count {
            let rest = UnsafeRawBufferPointer(rebasing: bytes[done...])
            let count = retryingInterrupts { transmit(outputFD, rest) }
            if count > 0 {
                done += count
            } else if count < 0, isTransientFailure() {
                break
            } else {
                failOutput()
                return nil
            }
        }
        return done
    }

    private func failOutput() {
        writeFailed = true
        unsent = []
        unsentStart = 0
        let current = connection
        // The front end is in the middle of a write: tell it later.
        loop.later { [weak self] in
            guard let self, current == connection, isOpen else { return }
            outputFailed()
        }
    }

    /// Writing failed: the peer is gone, whatever it may still have sent.
    open func outputFailed() { disconnect() }

    private func outputReady(connection current: Int, _ events: IOEvents) {
        guard current == connection else { return }
        if events.contains(.error) || events.contains(.hangup) { hungUp = true }
        if events.contains(.writable) || hungUp { flush() }
        if hungUp, outputFD >= 0 { updateWatches() }
    }

    private func flush() {
        flushUnsent()
        updateWatches()
        if owesWritable, unsent.count - unsentStart <= Self.unsentLimit / 2 {
            owesWritable = false
            updateWatches()
            frontend?.chardevWritable()
        }
    }

    private func flushUnsent() {
        guard unsentStart < unsent.count, outputFD >= 0, !writeFailed, !isHeld, !isOutputHeld, !isLent else {
            return
        }
        let sent = unsent.withUnsafeBytes { send(UnsafeRawBufferPointer(rebasing: $0[unsentStart...])) }
        guard let sent else { return }
        unsentStart += sent
        if unsentStart == unsent.count { compact() }
    }

    private func compact() {
        guard unsentStart > 0 else { return }
        unsent.removeFirst(unsentStart)
        unsentStart = 0
    }
}
