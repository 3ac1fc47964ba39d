import BatonRuntime

/// The board's second I/O APIC (Intel's 82093AA): inputs 24 to 47, which the accelerator's controllers do not have. It
/// sends messages to local APICs.
///
/// Nobody tells it of a local APIC's end of interrupt. So a level that stays is sent once; a device that has something
/// new to say while its line is high renews it (`InterruptLine.renew`).
public final class SecondIOAPIC: MMIODevice, Device {
    public let stateName = "ioapic2"
    public static let pins = 24
    private static let masked: UInt64 = 1 << 16
    /// Bits of an entry that a guest may write: all but delivery status, remote IRR and what is reserved.
    private static let writable: UInt64 = 0xff00_0000_0001_afff

    private enum Register {
        static let select: UInt64 = 0x00
        static let window: UInt64 = 0x10
        static let id = 0
        static let version = 1
        static let arbitration = 2
        static let entries = 0x10
    }

    private let send: (_ address: UInt64, _ data: UInt32) -> Void
    private var select: UInt8 = 0
    private var id: UInt32 = 0
    private var entries = [UInt64](repeating: masked, count: pins)
    private var levels = [Bool](repeating: false, count: pins)
    /// Whether a message was sent for the level as it is.
    private var sent = [Bool](repeating: false, count: pins)
    private var isRunning = false

    /// - Parameter send: sends a message signalled interrupt.
    public init(send: @escaping (_ address: UInt64, _ data: UInt32) -> Void) { self.send = send }

    /// - Parameter pin: 0 to 23.
    public func line(_ pin: Int) -> InterruptLine {
        InterruptLine({ [unowned self] in set(pin, $0) }, renew: { [unowned self] in renew(pin) })
    }

    private func set(_ pin: Int, _ level: Bool) {
        levels[pin] = level
        if level { deliver(pin) } else { sent[pin] = false }
    }

    private func renew(_ pin: Int) {
        sent[pin] = false
        deliver(pin)
    }

    private func deliver(_ pin: Int) {
        let entry = entries[pin]
        guard isRunning, levels[pin], !sent[pin], entry & SecondIOAPIC.masked == 0 else { return }
        sent[pin] = true
        // Destination and its mode, then vector and delivery mode: Intel SDM 3A, 11.11. Always an edge.
        send(0xfee0_0000 | (entry >> 56) << 12 | (entry >> 11 & 1) << 2, UInt32(truncatingIfNeeded: entry & 0x7ff))
    }

    // MARK: Registers

    public func accepts(offset: UInt64, width: Int) -> Bool { width <= 4 && offset % 4 == 0 }

    public func mmioRead(offset: UInt64, width: Int) -> UInt64 {
        switch offset {
        case Register.select: return UInt64(select)
        case Register.window: return UInt64(read(Int(select)))
        default: return 0
        }
    }

    public func mmioWrite(offset: UInt64, width: Int, value: UInt64) {
        switch offset {
        case Register.select: select = UInt8(truncatingIfNeeded: value)
        case Register.window where width == 4: write(Int(select), UInt32(truncatingIfNeeded: value))
        default: Log.guestError("ioapic2: write of \(width) bytes at \(Hex(offset))")
        }
    }

    private func read(_ register: Int) -> UInt32 {
        switch register {
        case Register.id, Register.arbitration: return id << 24
        // Version 0x11, and the number of the last entry.
        case Register.version: return UInt32(SecondIOAPIC.pins - 1) << 16 | 0x11
        default:
            let pin = (register - Register.entries) / 2
            guard register >= Register.entries, pin < SecondIOAPIC.pins else { return 0 }
            return UInt32(truncatingIfNeeded: register % 2 == 0 ? entries[pin] : entries[pin] >> 32)
        }
    }

    private func write(_ register: Int, _ value: UInt32) {
        if register == Register.id {
            id = value >> 24 & 0xf
            return
        }
        let pin = (register - Register.entries) / 2
        guard register >= Register.entries, pin < SecondIOAPIC.pins else {
            return Log.guestError("ioapic2: write of the register \(Hex(UInt64(register)))")
        }
        let entry =
            register % 2 == 0
            ? entries[pin] & ~0xffff_ffff | UInt64(value) : entries[pin] & 0xffff_ffff | UInt64(value) << 32
        entries[pin] = entry & SecondIOAPIC.writable
        deliver(pin)
    }

    // MARK: Device

    public func reset() {
        select = 0
        id = 0
        for pin in 0..<SecondIOAPIC.pins {
            entries[pin] = SecondIOAPIC.masked
            sent[pin] = false
        }
    }

    public func pause() { isRunning = false }

    public func resume() {
        isRunning = true
        for pin in 0..<SecondIOAPIC.pins { deliver(pin) }
    }

    public func save(to writer: inout StateWriter) {
        writer.put("select", UInt64(select))
        writer.put("id", UInt64(id))
        writer.put("entries", entries)
        writer.put("sent", sent.map { $0 ? 1 : 0 })
    }

    public func loader(of reader: StateReader) throws(VMMError) -> () -> Void {
        let newSelect = UInt8(try reader.unsigned("select", in: 0...0xff))
        let newID = UInt32(try reader.unsigned("id", in: 0...0xf))
        let newEntries = try reader.array("entries", count: SecondIOAPIC.pins...SecondIOAPIC.pins)
        let newSent = try reader.array("sent", count: SecondIOAPIC.pins...SecondIOAPIC.pins)
        try reader.finish()
        guard newEntries.allSatisfy({ $0 & ~SecondIOAPIC.writable == 0 }), newSent.allSatisfy({ $0 <= 1 }) else {
            throw VMMError("section '\(reader.section)' has an entry that cannot be")
        }
        return { [self] in
            select = newSelect
            id = newID
            entries = newEntries
            sent = newSent.map { $0 == 1 }
        }
    }
}
