import BatonRuntime

/// An ns16550a UART with 16-byte FIFOs, on a chardev. Its line is infinitely
/// fast: what is written leaves at once unless the host does not take it.
public final class SerialUART: MMIODevice, Device, ChardevFrontend {
    public let stateName: String
    /// Bytes that the device tree gives it.
    public static let size: UInt64 = 0x100
    /// Bytes that it answers.
    public static let registersSize: UInt64 = 8
    static let fifoDepth = 16
    /// Output that is collected before the chardev is called.
    static let batch = 512

    private let vm: VirtualMachine
    private let chardev: Chardev?
    private let line: InterruptLine
    private var isRunning = false

    // The registers that the guest writes.
    var interruptEnable: UInt8 = 0
    var fifoControl: UInt8 = 0
    var lineControl: UInt8 = 0
    var modemControl: UInt8 = 0
    var scratch: UInt8 = 0
    var divisor: UInt16 = 0
    // Sticky bits of LSR (overrun, break) and of MSR (deltas).
    var lineErrors: UInt8 = 0
    var modemDeltas: UInt8 = 0
    /// The transmitter-empty interrupt has not been acknowledged.
    var transmitInterrupt = false
    var input: [UInt8] = []
    /// Taken from the guest, not yet by the chardev.
    var output: [UInt8] = []
    /// The chardev did not take all of `output`.
    var isBlocked = false
    private var flushScheduled = false

    /// - Parameters:
    ///   - chardev: nil for a port with nothing connected.
    ///   - line: the wire to the interrupt controller.
    /// - Throws: an error when the chardev is in use.
    public init(name: String, vm: VirtualMachine, chardev: Chardev?, line: InterruptLine) throws(VMMError) {
        self.stateName = name
        self.vm = vm
        self.chardev = chardev
        self.line = line
        input.reserveCapacity(SerialUART.fifoDepth)
        output.reserveCapacity(SerialUART.batch)
        try chardev?.attach(self)
    }

    private var fifoEnabled: Bool { fifoControl & 1 != 0 }
    private var loopback: Bool { modemControl & 0x10 != 0 }
    private var depth: Int { fifoEnabled ? SerialUART.fifoDepth : 1 }
    /// Bytes in the receive FIFO that raise the data interrupt.
    private var trigger: Int {
        guard fifoEnabled else { return 1 }
        switch fifoControl >> 6 {
        case 0: return 1
        case 1: return 4
        case 2: return 8
        default: return 14
        }
    }

    private var lineStatus: UInt8 {
        lineErrors | (input.isEmpty ? 0 : 0x01) | (isBlocked ? 0 : 0x60)
    }

    private var modemStatus: UInt8 {
        guard loopback else { return 0xb0 | modemDeltas }
        // DTR to DSR, RTS to CTS, OUT1 to RI, OUT2 to DCD.
        let mcr = modemControl
        let inputs = (mcr & 1) << 5 | (mcr & 2) << 3 | (mcr & 4) << 4 | (mcr & 8) << 4
        return inputs | modemDeltas
    }

    // MARK: Interrupts

    /// The pending interrupt of the highest priority, as IIR's low bits.
    private var cause: UInt8 {
        if interruptEnable & 4 != 0, lineErrors != 0 { return 0x06 }
        if interruptEnable & 1 != 0, !input.isEmpty {
            // The line is idle as soon as a byte has come, so bytes below the
            // trigger are timed out at once.
            return input.count >= trigger ? 0x04 : 0x0c
        }
        if interruptEnable & 2 != 0, transmitInterrupt { return 0x02 }
        if interruptEnable & 8 != 0, modemDeltas != 0 { return 0x00 }
        return 0x01
    }

    func update() { line.set(cause != 0x01) }

    // MARK: Registers

    public func mmioRead(offset: UInt64, width: Int) -> UInt64 {
        // Wider accesses reach the one register at that address.
        return UInt64(read(UInt8(truncatingIfNeeded: offset)))
    }

    public func mmioWrite(offset: UInt64, width: Int, value: UInt64) {
        write(UInt8(truncatingIfNeeded: offset), UInt8(truncatingIfNeeded: value))
    }

    private func read(_ register: UInt8) -> UInt8 {
        let divisorAccess = lineControl & 0x80 != 0
        switch register {
        case 0:
            if divisorAccess { return UInt8(truncatingIfNeeded: divisor) }
            guard !input.isEmpty else { return 0 }
            let byte = input.removeFirst()
            update()
            if isRunning, !loopback { chardev?.acceptInput() }
            return byte
        case 1: return divisorAccess ? UInt8(truncatingIfNeeded: divisor >> 8) : interruptEnable
        case 2:
            let value = cause
            if value == 0x02 {
                transmitInterrupt = false
                update()
            }
            return value | (fifoEnabled ? 0xc0 : 0)
        case 3: return lineControl
        case 4: return modemControl
        case 5:
            let value = lineStatus
            lineErrors = 0
            update()
            return value
        case 6:
            let value = modemStatus
            modemDeltas = 0
            update()
            return value
        default: return scratch
        }
    }

    private func write(_ register: UInt8, _ value: UInt8) {
        let divisorAccess = lineControl & 0x80 != 0
        switch register {
        case 0:
            if divisorAccess {
                divisor = divisor & 0xff00 | UInt16(value)
            } else {
                transmit(value)
            }
        case 1:
            if divisorAccess {
                divisor = divisor & 0x00ff | UInt16(value) << 8
                return
            }
            let enabled = value & 0x0f & ~interruptEnable
            interruptEnable = value & 0x0f
            // Enabling the transmitter's interrupt raises it when it is empty.
            if enabled & 2 != 0, !isBlocked { transmitInterrupt = true }
            update()
        case 2: writeFIFOControl(value)
        case 3: lineControl = value
        case 4: writeModemControl(value)
        case 5, 6: Log.guestError("\(stateName): write of the read-only register \(register)")
        default: scratch = value
        }
    }

    private func writeFIFOControl(_ value: UInt8) {
        // A change of the enable bit clears both FIFOs.
        let clears = (value ^ fifoControl) & 1 != 0 ? 0x06 : value & 0x06
        if clears & 2 != 0 {
            input.removeAll(keepingCapacity: true)
            lineErrors &= ~0x10
        }
        if clears & 4 != 0, isBlocked {
            output.removeAll(keepingCapacity: true)
            isBlocked = false
            transmitInterrupt = true
        }
        fifoControl = value & 1 != 0 ? value & 0xc9 : 0
        update()
        if isRunning, !loopback { chardev?.acceptInput() }
    }

    private func writeModemControl(_ value: UInt8) {
        let before = modemStatus & 0xf0
        modemControl = value & 0x1f
        let after = modemStatus & 0xf0
        // In loopback the guest is its own modem, and sees its changes.
        if loopback {
            let changed = (before ^ after) >> 4
            // RI counts on its trailing edge only.
            modemDeltas |= changed & 0x0b | (before & 0x40 != 0 && after & 0x40 == 0 ? 0x04 : 0)
        }
        update()
        if isRunning, !loopback { chardev?.acceptInput() }
    }

    // MARK: Output

    private func transmit(_ byte: UInt8) {
        if loopback {
            receive(byte)
        } else if isBlocked, output.count >= SerialUART.fifoDepth {
            return Log.guestError("\(stateName): byte written to a full transmit FIFO")
        } else {
            output.append(byte)
            if !isBlocked {
                if output.count >= SerialUART.batch {
                    flush()
                } else if !flushScheduled {
                    // One call of the chardev for all of a slice's bytes.
                    flushScheduled = true
                    vm.loop.later { [weak self] in
                        guard let self else { return }
                        flushScheduled = false
                        if isRunning { flush() }
                    }
                }
            }
        }
        transmitInterrupt = !isBlocked
        update()
    }

    /// Sends bytes behind the guest's driver's back: the SBI's debug console.
    public func send(_ bytes: UnsafeRawBufferPointer) {
        if isBlocked { return }
        output += bytes
        flush()
        // What the host does not take now is dropped, as the SBI's caller is
        // not to be held up; the driver's own bytes have their flow control.
        if isBlocked, output.count > SerialUART.fifoDepth {
            output.removeSubrange(SerialUART.fifoDepth...)
        }
    }

    /// Takes received bytes.
    /// - Returns: how many.
    public func take(into buffer: UnsafeMutableRawBufferPointer) -> Int {
        let count = min(buffer.count, input.count)
        buffer.copyBytes(from: input[..<count])
        input.removeFirst(count)
        update()
        if isRunning { chardev?.acceptInput() }
        return count
    }

    private func flush() {
        guard !output.isEmpty else { return }
        let taken = output.withUnsafeBytes { bytes in chardev.map { max(0, $0.write(bytes)) } ?? bytes.count }
        output.removeFirst(min(taken, output.count))
        let wasBlocked = isBlocked
        isBlocked = !output.isEmpty
        if wasBlocked, !isBlocked { transmitInterrupt = true }
        update()
    }

    public func chardevWritable() { if isRunning { flush() } }

    // MARK: Input

    private func receive(_ byte: UInt8) {
        if input.count >= depth {
            lineErrors |= 0x02
            // A full FIFO keeps what it has; the holding register does not.
            if !fifoEnabled { input[0] = byte }
        } else {
            input.append(byte)
        }
    }

    public func chardevCanReceive() -> Int { isRunning && !loopback ? max(0, depth - input.count) : 0 }

    public func chardevReceive(_ bytes: UnsafeRawBufferPointer) {
        for byte in bytes { receive(byte) }
        update()
    }

    public func chardevEvent(_ event: ChardevEvent) {
        guard event == .breakCondition, isRunning, !loopback else { return }
        receive(0)
        lineErrors |= 0x10
        update()
    }

    // MARK: Device

    public func reset() {
        interruptEnable = 0
        fifoControl = 0
        lineControl = 0
        modemControl = 0x08
        scratch = 0
        divisor = 0x0c
        lineErrors = 0
        modemDeltas = 0
        transmitInterrupt = false
        input.removeAll(keepingCapacity: true)
        // What the guest has sent before the reset is still to be seen.
        if isRunning { flush() }
        output.removeAll(keepingCapacity: true)
        isBlocked = false
        update()
        if isRunning { chardev?.acceptInput() }
    }

    public func pause() {
        guard isRunning else { return }
        flush()
        isRunning = false
    }

    public func resume() {
        guard !isRunning else { return }
        isRunning = true
        flush()
        chardev?.acceptInput()
    }
}
