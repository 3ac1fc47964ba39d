import BatonRuntime
import Glibc

/// A port of a virtio-serial device, and the chardev behind it.
///
/// The device keeps it. With the VM lock held.
public final class VirtioSerialPort: ChardevFrontend {
    /// What `-device virtserialport` and `virtconsole` say.
    public struct Options {
        /// `virtconsole`: the guest makes a terminal of it.
        public var isConsole: Bool
        /// The device's id, for events.
        public var id: String?
        /// Which port it is to be; nil for the first free one.
        public var number: Int?
        /// What the guest finds it by: `/dev/virtio-ports/NAME`.
        public var name: String?
        /// What the port's bytes go to; without one they are dropped.
        public var chardev: Chardev?

        public init(isConsole: Bool, chardev: Chardev? = nil) {
            self.isConsole = isConsole
            self.chardev = chardev
        }
    }

    public let number: Int
    public let isConsole: Bool
    public let name: String?
    private let chardev: Chardev?
    private unowned let device: VirtioSerial
    /// Bytes of the first chain in the transmit queue that the chardev has.
    var sent = 0

    // What driver and device know of each other, of a driver that knows more ports than one.
    /// The driver has said that it has set the port up.
    private var isReady = false
    /// A program of the guest's has opened the port.
    public private(set) var isOpenInGuest = false
    /// Messages for the driver that it has not got yet, besides PORT_OPEN.
    private var pending: Pending = []
    /// The driver's last PORT_OPEN from here.
    private var isToldOpen = false
    /// The peer that the driver was told of is another now.
    private var owesClose = false

    /// VSERPORT_CHANGE; nil for a port without an id.
    private var change: SeldomEvent?

    struct Pending: OptionSet {
        let rawValue: UInt8
        static let added = Pending(rawValue: 1)
        static let console = Pending(rawValue: 2)
        static let name = Pending(rawValue: 4)
    }

    init(of device: VirtioSerial, number: Int, _ options: Options) {
        self.device = device
        self.number = number
        isConsole = options.isConsole
        name = options.name
        chardev = options.chardev
        guard let id = options.id else { return }
        change = SeldomEvent("VSERPORT_CHANGE", vm: device.vm) { [weak self] in
            ["id": .string(id), "open": .bool(self?.isOpenInGuest == true)]
        }
    }

    /// Whether the device may touch memory, and the port's program is there to talk to.
    private var takesInput: Bool {
        device.isRunning && device.isOperating && (isOpenInGuest || !device.usesMultiport)
    }

    // MARK: From the guest

    /// The most that a chardev is given at once: one may take a gigabyte.
    private static let piece = 1 << 16

    func transmit() {
        let queue = device.transmitQueue(ofPort: number)
        device.serveChains(queue) { chain in
            let result = send(queue.readable(chain))
            if case .used = result { sent = 0 }
            return result
        }
    }

    /// Sends what was not sent of a chain.
    private func send(_ segments: UnsafeMutableBufferPointer<iovec>) -> VirtioDevice.Served {
        guard let chardev else { return .used(0) }
        var skip = sent
        for segment in segments {
            if skip >= segment.iov_len {
                skip -= segment.iov_len
                continue
            }
            let whole = UnsafeRawBufferPointer(start: segment.iov_base, count: segment.iov_len)
            while skip < whole.count {
                let part = UnsafeRawBufferPointer(
                    rebasing: whole[skip..<min(whole.count, skip + VirtioSerialPort.piece)])
                let taken = min(part.count, max(0, chardev.write(part)))
                sent += taken
                skip += taken
                // `chardevWritable` goes on.
                if taken < part.count { return .stopped }
                if !device.vm.loop.mayGoOn(after: taken * 4) { return .unfinished }
            }
            skip = 0
        }
        return .used(0)
    }

    public func chardevWritable() {
        if device.isRunning, device.isOperating, !device.transmitQueue(ofPort: number).isPutOff { transmit() }
    }

    // MARK: To the guest

    /// There may be room for input. Suppresses notifications until input waits for room.
    func acceptInput() {
        if takesInput { chardev?.acceptInput() }
    }

    public func chardevCanReceive() -> Int {
        guard takesInput else { return 0 }
        return device.receiveQueue(ofPort: number).nextOrNotification()?.writableBytes ?? 0
    }

    public func chardevReceive(_ bytes: UnsafeRawBufferPointer) {
        guard takesInput else { return }
        let queue = device.receiveQueue(ofPort: number)
        var rest = bytes
        while rest.count > 0, let chain = queue.next() {
            guard chain.writableBytes > 0 else { return device.fail("receive buffer that is not writable") }
            let count = queue.copyIn(chain, offset: 0, from: rest)
            queue.consume()
            queue.push(chain, written: count)
            rest = UnsafeRawBufferPointer(rebasing: rest[count...])
        }
        queue.signal()
    }

    // MARK: The two ends' state

    /// Whether a peer is there; behind a console somebody always is, as in QEMU.
    private var isOpenOnHost: Bool {
        guard let chardev else { return isConsole }
        return isConsole || chardev.isOpen
    }

    public var isFrontendOpen: Bool { isConsole || isOpenInGuest }

    public func chardevEvent(_ event: ChardevEvent) {
        switch event {
        case .opened: break
        case .closed: if !isConsole, isToldOpen { owesClose = true }
        default: return
        }
        device.hasMessages()
    }

    /// The driver asks for all ports.
    func announce() { pending.insert(.added) }

    /// The driver has set the port up, and is to be told what it is.
    func driverIsReady() {
        isReady = true
        pending.subtract([.console, .name])
        if isConsole { pending.insert(.console) }
        if name != nil { pending.insert(.name) }
        isToldOpen = false
        owesClose = false
    }

    /// A program of the guest's opens or closes the port.
    func setOpenInGuest(_ isOpen: Bool) {
        guard isOpen != isOpenInGuest else { return }
        isOpenInGuest = isOpen
        change?.report()
        if isOpen { acceptInput() }
    }

    /// It is taken away: its chardev is free for others.
    func leave() {
        setOpenInGuest(false)
        chardev?.detach()
    }

    /// The machine runs again, here or in another process.
    func resume() {
        change?.resume()
        acceptInput()
    }

    /// The next message that the driver is to get; nil when it knows everything.
    func nextMessage() -> (event: VirtioSerial.Control, value: UInt16)? {
        if pending.contains(.added) { return (.deviceAdd, 1) }
        guard isReady else { return nil }
        if pending.contains(.console) { return (.consolePort, 1) }
        if pending.contains(.name) { return (.portName, 1) }
        if isToldOpen, owesClose || !isOpenOnHost { return (.portOpen, 0) }
        if !isToldOpen, isOpenOnHost { return (.portOpen, 1) }
        return nil
    }

    /// The driver has got what `nextMessage` gave.
    func didSend(_ event: VirtioSerial.Control, _ value: UInt16) {
        switch event {
        case .deviceAdd: pending.remove(.added)
        case .consolePort: pending.remove(.console)
        case .portName: pending.remove(.name)
        case .portOpen:
            isToldOpen = value == 1
            owesClose = false
        default: break
        }
    }

    func reset() {
        sent = 0
        isReady = false
        pending = []
        isToldOpen = false
        owesClose = false
        setOpenInGuest(false)
    }

    // MARK: Saved state

    private enum Flag {
        static let isConsole: UInt64 = 1
        static let isReady: UInt64 = 2
        static let isOpenInGuest: UInt64 = 4
        static let isToldOpen: UInt64 = 8
        static let owesClose: UInt64 = 16
        /// Of the first bit of `pending`.
        static let pendingShift: UInt64 = 5
        static let owesChange: UInt64 = 0x100
        static let all: UInt64 = 0x1ff
    }

    var flags: UInt64 {
        (isConsole ? Flag.isConsole : 0) | (isReady ? Flag.isReady : 0) | (isOpenInGuest ? Flag.isOpenInGuest : 0)
            | (isToldOpen ? Flag.isToldOpen : 0) | (owesClose ? Flag.owesClose : 0)
            | UInt64(pending.rawValue) << Flag.pendingShift
            | (change?.isOwed == true ? Flag.owesChange : 0)
    }

    /// Whether saved flags are of such a port.
    func accepts(flags: UInt64) -> Bool {
        flags <= Flag.all && (flags & Flag.isConsole != 0) == isConsole
    }

    func restore(sent: Int, flags: UInt64) {
        self.sent = sent
        isReady = flags & Flag.isReady != 0
        isOpenInGuest = flags & Flag.isOpenInGuest != 0
        isToldOpen = flags & Flag.isToldOpen != 0
        owesClose = flags & Flag.owesClose != 0
        pending = Pending(rawValue: UInt8(truncatingIfNeeded: flags >> Flag.pendingShift) & 7)
        change?.restore(isOwed: flags & Flag.owesChange != 0)
        // The peer of before has not come along, and somebody else has connected meanwhile.
        if isToldOpen, !isConsole, let chardev, chardev.isOpen, !chardev.isInherited, !chardev.descriptors.isEmpty {
            owesClose = true
        }
    }
}
