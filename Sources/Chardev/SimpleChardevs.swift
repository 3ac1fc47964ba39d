import BatonRuntime
import Glibc

/// `null`: output is dropped, there is no input.
public final class NullChardev: Chardev {
    public init(id: String) { super.init(id: id, backend: "null") }
    public override var survivesUpdate: Bool { true }

    public override func didAttach() { frontend?.chardevEvent(.opened) }
}

/// `file`: output goes to a file, there is no input.
public final class FileChardev: Chardev {
    /// The open file; -1 after `shutDown`. Owned.
    public private(set) var outputFD: Int32
    /// What its file may be.
    static let kinds: [FileKind] = [.regular, .fifo, .characterDevice]
    private let serial = PreservedFDs.newSerial()
    /// What is handed over, made once: there may be many, and the guest waits.
    private lazy var handed = (
        fd: ChardevUpdate.name(id, "file"), part: ChardevUpdate.part(id),
        state: ChardevUpdate.state(of: self) { $0.put("path", path) }
    )
    private var hasFailed = false
    private let path: String

    /// Creates or opens the file; empties it unless `append`. What a FIFO or device does not take at once is lost.
    public init(id: String, path: String, append: Bool) throws(VMMError) {
        let flags = O_WRONLY | O_CREAT | (append ? O_APPEND : O_TRUNC)
        outputFD = try FD.openFile(path, flags, kinds: Self.kinds, mode: 0o666).release()
        self.path = path
        super.init(id: id, backend: "file")
    }

    /// Empties the file, which was opened with `append`.
    func empty() throws(VMMError) {
        var status = stat()
        guard fstat(outputFD, &status) == 0, status.st_mode & S_IFMT == S_IFREG else { return }
        guard ftruncate(outputFD, 0) == 0 else { throw .system("cannot empty '\(path)'") }
    }

    /// Takes over the open file of the process before, where that left off.
    /// - Parameter isStandIn: a trial has it for reading only.
    init(id: String, path: String, heritage: ChardevHeritage, isStandIn: Bool) throws(VMMError) {
        let before = try heritage.state.string("path")
        guard before == path else {
            throw VMMError(
                "chardev '\(id)' writes to '\(before)' in the CPR state, but to '\(path)' on the command line",
                hint: "With reopen-on-cpr=on the file is opened anew.")
        }
        guard let fd = heritage.claim("file") else { throw heritage.mismatch("there") }
        guard isStandIn || DescriptorKind.isWritable(fd) else { throw heritage.mismatch("a file open for writing") }
        outputFD = fd
        self.path = path
        super.init(id: id, backend: "file")
    }

    deinit { shutDown() }

    public override func didAttach() { frontend?.chardevEvent(.opened) }

    /// What the file system refuses is lost, as what a printer without paper is.
    public override func write(_ bytes: UnsafeRawBufferPointer) -> Int {
        guard outputFD >= 0 else { return bytes.count }
        do throws(VMMError) {
            try FD.writeAll(outputFD, bytes, to: "chardev '\(id)'")
        } catch {
            if !hasFailed { Report.warning("\(error.message)") }
            hasFailed = true
        }
        return bytes.count
    }

    public override var survivesUpdate: Bool { true }

    public override func handOver(to cpr: any MachineHandover) throws(VMMError) {
        guard !reopensOnCpr, outputFD > 2 else { return }
        cpr.fds.replace(handed.fd, outputFD, serial: serial)
        cpr.handOver(handed.part, handed.state)
    }

    public override func shutDown() {
        guard outputFD >= 0 else { return }
        close(outputFD)
        outputFD = -1
    }
}

/// `ringbuf`: output is kept, the newest `size` bytes of it, for `ringbuf-read`.
public final class RingBufferChardev: Chardev {
    /// Bytes kept; a power of two.
    public let size: Int
    private var storage: [UInt8]
    /// Counts of bytes ever written and read; their difference is at most `size`.
    private var written = 0
    private var consumed = 0

    /// - Throws: QEMU's error when `size` is not a power of two.
    public init(id: String, size: UInt64) throws(VMMError) {
        guard size > 0, size & (size - 1) == 0 else {
            throw VMMError("size of ringbuf chardev must be power of two")
        }
        guard size <= 1 << 30 else { throw VMMError("size of ringbuf chardev must be at most 1 GiB, not \(size)") }
        self.size = Int(size)
        storage = [UInt8](repeating: 0, count: self.size)
        super.init(id: id, backend: "ringbuf")
    }

    public override func didAttach() { frontend?.chardevEvent(.opened) }

    public override func write(_ bytes: UnsafeRawBufferPointer) -> Int {
        for byte in bytes.suffix(size) {
            storage[written & (size - 1)] = byte
            written += 1
        }
        consumed = max(consumed, written - size)
        return bytes.count
    }

    public override var survivesUpdate: Bool { true }

    public override func handOver(to cpr: any MachineHandover) throws(VMMError) {
        guard !reopensOnCpr else { return }
        let kept = (consumed..<written).map { storage[$0 & (size - 1)] }
        cpr.handOver(self) { $0.put("contents", bytes: kept) }
    }

    public override func takeOver(_ changes: PartChanges) throws(VMMError) {
        guard let state = changes.state else { return }
        _ = try state.string("backend")
        let kept = try state.bytes("contents")
        (written, consumed) = (0, 0)
        _ = kept.withUnsafeBytes { write($0) }
    }

    /// Takes out up to `count` of the oldest bytes.
    public func takeBytes(_ count: Int) -> [UInt8] {
        let end = consumed + min(max(count, 0), written - consumed)
        defer { consumed = end }
        return (consumed..<end).map { storage[$0 & (size - 1)] }
    }
}
