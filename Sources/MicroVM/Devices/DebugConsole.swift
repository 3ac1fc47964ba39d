import BatonRuntime

/// QEMU's `isa-debugcon`: what is written to its port goes to a chardev.
///
/// There is no flow control: output that the chardev does not take waits, and is dropped when too much of it waits.
public final class DebugConsole: MMIODevice, Device, ChardevFrontend {
    public let stateName: String
    /// Default of `iobase=`.
    public static let defaultPort: UInt64 = 0xe9
    public static let portCount: UInt64 = 1
    /// Default of `readback=`, by which a guest finds the device.
    public static let defaultReadback: UInt8 = 0xe9
    /// Output that is collected before the chardev is called.
    private static let batch = 512
    /// Bytes that wait at most for the chardev.
    static let limit = 64 << 10

    private let vm: VirtualMachine
    private let chardev: Chardev
    private let readback: UInt8
    private var isRunning = false
    /// Taken from the guest, not yet by the chardev.
    private var output: [UInt8] = []
    /// The chardev did not take all of `output`.
    private var isBlocked = false
    private var isFlushScheduled = false

    /// - Parameters:
    ///   - name: unique among devices.
    ///   - readback: what the port reads.
    /// - Throws: an error when the chardev is in use.
    public init(
        name: String = "isa-debugcon", vm: VirtualMachine, chardev: Chardev,
        readback: UInt8 = DebugConsole.defaultReadback
    ) throws(VMMError) {
        stateName = name
        self.vm = vm
        self.chardev = chardev
        self.readback = readback
        try chardev.attach(self)
    }

    // MARK: Port

    public func accepts(offset: UInt64, width: Int) -> Bool { width == 1 }

    public func mmioRead(offset: UInt64, width: Int) -> UInt64 { UInt64(readback) }

    public func mmioWrite(offset: UInt64, width: Int, value: UInt64) {
        guard output.count < DebugConsole.limit else {
            return Log.guestError("\(stateName): byte dropped, as the chardev takes none")
        }
        output.append(UInt8(truncatingIfNeeded: value))
        if isBlocked { return }
        if output.count >= DebugConsole.batch {
            flush()
        } else if !isFlushScheduled {
            // One call of the chardev for all bytes that come at once.
            isFlushScheduled = true
            vm.loop.later { [weak self] in
                guard let self else { return }
                isFlushScheduled = false
                if isRunning { flush() }
            }
        }
    }

    private func flush() {
        guard !output.isEmpty else { return }
        let taken = output.withUnsafeBytes { max(0, chardev.write($0)) }
        output.removeFirst(min(taken, output.count))
        isBlocked = !output.isEmpty
    }

    // MARK: Chardev

    public func chardevWritable() { if isRunning { flush() } }
    /// There is no input.
    public func chardevCanReceive() -> Int { 0 }
    public func chardevReceive(_ bytes: UnsafeRawBufferPointer) {}

    // MARK: Device

    /// What the guest has written before the reset is still to be seen.
    public func reset() {}

    public func pause() {
        guard isRunning else { return }
        flush()
        isRunning = false
    }

    public func resume() {
        guard !isRunning else { return }
        isRunning = true
        flush()
    }

    public func save(to writer: inout StateWriter) {
        writer.put("output", bytes: output)
    }

    public func loader(of reader: StateReader) throws(VMMError) -> () -> Void {
        let newOutput = try reader.bytes("output", count: 0...DebugConsole.limit)
        try reader.finish()
        return { [self] in output = newOutput }
    }
}
