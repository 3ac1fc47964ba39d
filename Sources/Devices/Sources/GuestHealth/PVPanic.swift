import BatonRuntime

/// QEMU's `pvpanic` on a port (`docs/specs/pvpanic.rst`): the guest says that it has panicked, that it has started a
/// crash kernel, or that it shuts down.
///
/// An access may come from a vCPU's thread, in which nothing can stop the VM: what the guest has said is carried out
/// in the event loop's next turn.
public final class PVPanic: MMIODevice, Device {
    /// What the guest can say, as the port's bits.
    public struct Events: OptionSet {
        public let rawValue: UInt8
        public init(rawValue: UInt8) { self.rawValue = rawValue }
        public static let panicked = Events(rawValue: 1)
        public static let crashLoaded = Events(rawValue: 2)
        public static let shutdown = Events(rawValue: 4)
        /// Default of `events=`.
        public static let all: Events = [.panicked, .crashLoaded, .shutdown]
    }

    public let stateName: String
    /// Default of `ioport=`. Guests look for it in ACPI (`QEMU0001`), and firmware in fw_cfg's `etc/pvpanic-port`, which
    /// are the board's business.
    public static let defaultPort: UInt64 = 0x505
    public static let portCount: UInt64 = 1
    /// Nanoseconds between two QMP events of one kind after which the guest runs on: it could say it all day.
    private static let pauseBetweenEvents: Int64 = 1_000_000_000

    private let vm: VirtualMachine
    private let offered: Events
    private var isRunning = false
    /// Said by the guest, and not carried out yet.
    private var pending: Events = []
    private var isScheduled = false
    private var nextEventAt: [String: Int64] = [:]

    /// - Parameters:
    ///   - name: unique among devices.
    ///   - events: what the guest is told it may say; the rest is ignored.
    public init(name: String = "pvpanic", vm: VirtualMachine, events: Events = .all) {
        stateName = name
        self.vm = vm
        offered = events.intersection(.all)
    }

    // MARK: Port

    public func accepts(offset: UInt64, width: Int) -> Bool { width == 1 }

    public func mmioRead(offset: UInt64, width: Int) -> UInt64 { UInt64(offered.rawValue) }

    public func mmioWrite(offset: UInt64, width: Int, value: UInt64) {
        let said = Events(rawValue: UInt8(truncatingIfNeeded: value))
        if !said.isSubset(of: offered) { Log.guestError("\(stateName): unknown event \(Hex(value))") }
        // Of what is said at once only the first counts, as in QEMU.
        guard let first = [Events.panicked, .crashLoaded, .shutdown].first(where: said.intersection(offered).contains)
        else { return }
        pending.insert(first)
        schedule()
    }

    private func schedule() {
        guard !pending.isEmpty, !isScheduled else { return }
        isScheduled = true
        vm.loop.later { [weak self] in
            guard let self else { return }
            isScheduled = false
            carryOut()
        }
        vm.accelerator?.yield()
    }

    // MARK: In the loop

    private func carryOut() {
        // Of a stopped machine nothing may change, which may be in the hands of an update: `resume` comes back to it.
        guard isRunning else { return }
        let events = pending
        pending = []
        if events.contains(.crashLoaded) { emitSeldom("GUEST_CRASHLOADED") }
        if events.contains(.shutdown) {
            vm.emit("GUEST_PVSHUTDOWN")
            vm.guestRequestedShutdown(status: 0)
        }
        if events.contains(.panicked) { panic() }
    }

    private func panic() {
        let action = vm.guestActions.panic
        switch action {
        case .none: emitSeldom("GUEST_PANICKED")
        case .shutdown where vm.noShutdown, .pause:
            vm.emit("GUEST_PANICKED", ["action": .string("pause")])
            vm.stop(.guestPanicked)
        case .shutdown, .exitFailure:
            vm.emit("GUEST_PANICKED", ["action": .string("poweroff")])
            vm.stop(.guestPanicked)
            vm.requestQuit(cause: "guest-panic", status: action == .exitFailure ? 1 : 0)
        }
    }

    /// An event that changes nothing for the guest.
    private func emitSeldom(_ name: String) {
        let now = EventLoop.now
        guard now >= nextEventAt[name] ?? now else { return }
        nextEventAt[name] = now + PVPanic.pauseBetweenEvents
        vm.emit(name, ["action": .string("run")])
    }

    // MARK: Device

    public func reset() { pending = [] }

    public func pause() { isRunning = false }

    public func resume() {
        isRunning = true
        schedule()
    }

    public func save(to writer: inout StateWriter) { saveFields(to: &writer) }

    public func loader(of reader: StateReader) throws(VMMError) -> () -> Void {
        let apply = try fieldsLoader(of: reader)
        try reader.finish()
        return apply
    }

    // For a device of which this is a part, too.

    func saveFields(to writer: inout StateWriter) { writer.put("pending", UInt64(pending.rawValue)) }

    func fieldsLoader(of reader: StateReader) throws(VMMError) -> () -> Void {
        let newPending = Events(rawValue: UInt8(try reader.unsigned("pending", in: 0...UInt64(Events.all.rawValue))))
        return { [self] in pending = newPending }
    }
}
