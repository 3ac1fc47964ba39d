import BatonRuntime
import Glibc
import Testing

/// CPUs that a test plays, with doorbells and routes of messages as KVM has them.
final class FakeAccelerator: Accelerator {
    let name = "fake"
    let cpus: [CPUInfo] = []
    let takesDoorbells = true
    private let vm: VirtualMachine
    /// Whether doorbells without a width are taken.
    var takesAnyWidth = true
    /// Where routes send to; others are refused.
    static let messages: UInt64 = 0xfee0_0000

    private(set) var doorbells: [Doorbell] = []
    /// Doorbells that were taken, ever.
    private(set) var added = 0
    /// Stores that a device had to see.
    private(set) var exits = 0
    private(set) var routes: [FakeRoute] = []
    private let stored = StoredMessages()

    init(_ machine: TestMachine) throws {
        vm = machine.vm
        try vm.setAccelerator(self)
        try vm.addressSpace.map(stored, at: FakeAccelerator.messages, size: 0x10_0000, name: "messages")
    }

    /// What has been sent since the last call: by devices' stores, then by routes.
    func takeSent() -> (stored: [UInt32], routed: [UInt32]) { (stored.take(), routes.flatMap { $0.send() }) }

    func registers(ofCPU index: Int) -> String { "" }
    func runSlice() -> SliceResult { .idle(until: nil) }
    func yield() {}

    func add(_ doorbell: Doorbell) -> Bool {
        if doorbell.width == 0, !takesAnyWidth || doorbell.value != nil { return false }
        // As KVM: one more that would count the same.
        let isTaken = doorbells.contains {
            $0.address == doorbell.address && ($0.width == 0 || doorbell.width == 0 || $0.width == doorbell.width)
                && ($0.value == nil || doorbell.value == nil || $0.value == doorbell.value)
        }
        guard !isTaken else { return false }
        doorbells.append(doorbell)
        added += 1
        return true
    }

    func remove(_ doorbell: Doorbell) {
        #expect(doorbells.contains(doorbell), "\(doorbell) is not there")
        doorbells.removeAll { $0 == doorbell }
    }

    func makeMessageRoute(event: Int32) -> (any MessageRoute)? {
        let route = FakeRoute(event)
        routes.append(route)
        return route
    }

    /// A store of the guest's to memory.
    func store(_ address: UInt64, width: Int, _ value: UInt64) {
        let doorbell = doorbells.first {
            $0.address == address && ($0.width == 0 || $0.width == width) && ($0.value == nil || $0.value == value)
        }
        if let doorbell { return count(doorbell.fd) }
        exits += 1
        _ = vm.addressSpace.mmioWrite(address, width: width, value: value)
    }
}

/// Where devices store messages.
private final class StoredMessages: MMIODevice {
    private var received: [UInt32] = []
    func mmioRead(offset: UInt64, width: Int) -> UInt64 { 0 }
    func mmioWrite(offset: UInt64, width: Int, value: UInt64) { received.append(UInt32(truncatingIfNeeded: value)) }
    func take() -> [UInt32] {
        defer { received = [] }
        return received
    }
}

/// A route that sends when it is asked: what the kernel does at once.
final class FakeRoute: MessageRoute {
    private let event: Int32
    private(set) var message: UInt32?
    private(set) var isArmed = false
    private(set) var isRemoved = false

    init(_ event: Int32) { self.event = event }

    func set(address: UInt64, data: UInt32) -> Bool {
        guard address & ~0xf_ffff == FakeAccelerator.messages else {
            isArmed = false
            return false
        }
        (message, isArmed) = (data, true)
        return true
    }

    func mask() { isArmed = false }

    func remove() {
        mask()
        isRemoved = true
    }

    /// What it sends of that which waits in the eventfd.
    func send() -> [UInt32] {
        guard isArmed, let message, taken(event) else { return [] }
        return [message]
    }
}

/// Counts one up.
func count(_ event: Int32) {
    var one: UInt64 = 1
    #expect(write(event, &one, 8) == 8)
}

/// Takes what has been counted.
func taken(_ event: Int32) -> Bool {
    var state = pollfd(fd: event, events: Int16(POLLIN), revents: 0)
    var value: UInt64 = 0
    return poll(&state, 1, 0) > 0 && read(event, &value, 8) == 8
}
