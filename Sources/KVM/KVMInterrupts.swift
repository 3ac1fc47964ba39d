import BatonRuntime
import CKVM
import Glibc

/// The ways to the interrupt controllers in the kernel: wires, messages, and messages that eventfds send.
///
/// Changes of the routing table are collected, until the CPUs run or to the next turn of the loop: a device sets many at
/// a time, and each would cost a grace period of the kernel's. Until then events wait in their eventfds.
final class KVMInterrupts {
    /// Inputs of the I/O APIC.
    static let pinCount = 24
    private static let picPins = 16

    private let system: KVMSystem
    private let loop: EventLoop
    private var pins: [kvm_irq_routing_entry] = []
    private var routes: [KVMMessageRoute] = []
    private var freeNumbers: [UInt32] = []
    private var nextNumber = UInt32(KVMInterrupts.pinCount)
    private var isDirty = false
    private var awaitsFlush = false
    /// Whether CPUs run, or are about to.
    var isLive = false

    /// How many wires of each input are high, and what the kernel knows.
    private var raised = [Int](repeating: 0, count: KVMInterrupts.pinCount)
    private var asserted = [Bool](repeating: false, count: KVMInterrupts.pinCount)

    init(system: KVMSystem, loop: EventLoop) { (self.system, self.loop) = (system, loop) }

    /// Makes the controllers. As on a PC, the timer's interrupt 0 is input 2 of the I/O APIC.
    func build(hasPIC: Bool, hasPIT: Bool) throws(VMMError) {
        let made = system.vm.call(CKVM_CREATE_IRQCHIP)
        guard made >= 0 else {
            throw .system(
                "KVM_CREATE_IRQCHIP failed", errno: -made,
                hint: made == -ENOTTY ? "From Linux 6.17 on the host's kernel must be built with KVM_IOAPIC." : nil)
        }
        if hasPIT {
            var config = kvm_pit_config()
            // Port 0x61 too: KVM_PIT_SPEAKER_DUMMY.
            config.flags = 1
            try KVMDescriptor.check(system.vm.call(CKVM_CREATE_PIT2, &config), "KVM_CREATE_PIT2")
        }
        for gsi in 0..<UInt32(KVMInterrupts.pinCount) {
            if hasPIC, gsi < KVMInterrupts.picPins, gsi != 2 {
                pins.append(ckvm_pin_route(gsi, gsi < 8 ? 0 : 1, gsi % 8))
            }
            if gsi == 0 {
                pins.append(ckvm_pin_route(0, UInt32(KVM_IRQCHIP_IOAPIC), 2))
            } else if gsi != 2 {
                pins.append(ckvm_pin_route(gsi, UInt32(KVM_IRQCHIP_IOAPIC), gsi))
            }
        }
        isDirty = true
        if let error = flush() { throw error }
    }

    // MARK: Wires

    func line(gsi: Int) -> InterruptLine {
        precondition(0..<KVMInterrupts.pinCount ~= gsi)
        return InterruptLine { [self] level in
            raised[gsi] += level ? 1 : -1
            drive(gsi)
        }
    }

    private func drive(_ gsi: Int) {
        let level = raised[gsi] > 0
        guard level != asserted[gsi] else { return }
        setLevel(gsi, level)
    }

    private func setLevel(_ gsi: Int, _ level: Bool) {
        asserted[gsi] = level
        var request = kvm_irq_level()
        request.irq = UInt32(gsi)
        request.level = level ? 1 : 0
        system.vm.call(CKVM_IRQ_LINE, &request)
    }

    /// The levels that the controllers see, a bit an input.
    var levels: UInt64 {
        asserted.enumerated().reduce(0) { $1.element ? $0 | 1 << UInt64($1.offset) : $0 }
    }

    /// Puts the wires to where they were when a state was saved, before the controllers' state is set: a device that
    /// then raises its wire again causes no second interrupt.
    func restore(levels: UInt64) {
        for gsi in 0..<KVMInterrupts.pinCount where asserted[gsi] != (levels >> UInt64(gsi) & 1 != 0) {
            setLevel(gsi, !asserted[gsi])
        }
    }

    /// Tells controllers that were reset of the wires that are high.
    func repeatLevels() { for gsi in 0..<KVMInterrupts.pinCount where asserted[gsi] { setLevel(gsi, true) } }

    /// Drives wires whose devices did not say again what they had said.
    func settle() {
        for gsi in 0..<KVMInterrupts.pinCount { drive(gsi) }
    }

    // MARK: Messages

    func send(address: UInt64, data: UInt32) -> Bool {
        var message = kvm_msi()
        message.address_lo = UInt32(truncatingIfNeeded: address)
        message.address_hi = UInt32(truncatingIfNeeded: address >> 32)
        message.data = data
        return system.vm.call(CKVM_SIGNAL_MSI, &message) >= 0
    }

    func makeRoute(event: Int32) -> KVMMessageRoute? {
        guard pins.count + routes.count < system.maximumRoutes else { return nil }
        let number: UInt32
        if let free = freeNumbers.popLast() {
            number = free
        } else {
            number = nextNumber
            nextNumber += 1
        }
        let route = KVMMessageRoute(fd: event, number: number, owner: self)
        routes.append(route)
        return route
    }

    func remove(_ route: KVMMessageRoute) {
        disarm(route)
        routes.removeAll { $0 === route }
        freeNumbers.append(route.number)
        if route.message != nil { changed() }
    }

    /// The table is not what the kernel has any more, or a route is not armed as it should be.
    func changed(table: Bool = true) {
        if table { isDirty = true }
        guard isLive, !awaitsFlush else { return }
        awaitsFlush = true
        loop.later { [weak self] in
            guard let self else { return }
            awaitsFlush = false
            if isLive, let error = flush() { Report.error(error) }
        }
    }

    /// Tells the kernel what was collected.
    func flush() -> VMMError? {
        if isDirty {
            let messages = routes.compactMap { route in
                route.message.map { ckvm_message_route(route.number, $0.address, $0.data) }
            }
            let result = setTable(pins + messages)
            guard result >= 0 else { return .system("KVM_SET_GSI_ROUTING failed", errno: -result) }
            isDirty = false
        }
        for route in routes where route.isWanted && !route.isArmed {
            let result = assign(route, flags: 0)
            route.isArmed = result >= 0
            guard !route.isArmed, !route.isSentByLoop else { continue }
            Report.warning(VMMError.system("KVM_IRQFD failed, interrupts take longer", errno: -result).message)
            sendByLoop(route)
        }
        return nil
    }

    /// For what the kernel does not take, as an eventfd that is another VM's.
    private func sendByLoop(_ route: KVMMessageRoute) {
        let fd = route.fd
        route.isSentByLoop = true
        do throws(VMMError) {
            try loop.watch(fd, .readable) { [weak self, weak route] _ in
                var count: UInt64 = 0
                guard read(fd, &count, 8) == 8, let message = route?.message else { return }
                _ = self?.send(address: message.address, data: message.data)
            }
        } catch {
            Report.error(error)
        }
    }

    private func setTable(_ entries: [kvm_irq_routing_entry]) -> Int32 {
        let stride = MemoryLayout<kvm_irq_routing_entry>.stride
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 8 + stride * entries.count, alignment: 8)
        defer { buffer.deallocate() }
        buffer.storeBytes(of: UInt32(entries.count), as: UInt32.self)
        buffer.storeBytes(of: 0, toByteOffset: 4, as: UInt32.self)
        entries.withUnsafeBytes { UnsafeMutableRawBufferPointer(rebasing: buffer[8...]).copyMemory(from: $0) }
        return system.vm.call(CKVM_SET_GSI_ROUTING, bytes: buffer)
    }

    func disarm(_ route: KVMMessageRoute) {
        if route.isSentByLoop {
            route.isSentByLoop = false
            loop.unwatch(route.fd)
        }
        guard route.isArmed else { return }
        route.isArmed = false
        // KVM_IRQFD_FLAG_DEASSIGN.
        _ = assign(route, flags: 1)
    }

    private func assign(_ route: KVMMessageRoute, flags: UInt32) -> Int32 {
        var request = kvm_irqfd()
        request.fd = UInt32(bitPattern: route.fd)
        request.gsi = route.number
        request.flags = flags
        return system.vm.call(CKVM_IRQFD, &request)
    }
}

/// An eventfd whose events are messages, an irqfd.
///
/// An irqfd that is armed sends what waits in its eventfd. When it is disarmed the kernel has sent what came before.
final class KVMMessageRoute: MessageRoute {
    /// Borrowed.
    let fd: Int32
    /// The kernel's number of it, a GSI.
    let number: UInt32
    private weak var owner: KVMInterrupts?
    private(set) var message: (address: UInt64, data: UInt32)?
    /// Whether events are to be interrupts, and whether they are.
    private(set) var isWanted = false
    var isArmed = false
    /// The kernel has not taken it.
    var isSentByLoop = false

    init(fd: Int32, number: UInt32, owner: KVMInterrupts) {
        (self.fd, self.number, self.owner) = (fd, number, owner)
    }

    /// Where messages are for local APICs; KVM does not look at these bits (Intel SDM 3A, 11.11.1).
    private static func isMessage(_ address: UInt64) -> Bool { address & ~0xf_ffff == 0xfee0_0000 }

    func set(address: UInt64, data: UInt32) -> Bool {
        guard KVMMessageRoute.isMessage(address) else {
            mask()
            return false
        }
        let isNew = message == nil || message! != (address, data)
        guard isNew || !isWanted else { return true }
        message = (address, data)
        isWanted = true
        owner?.changed(table: isNew)
        return true
    }

    func mask() {
        isWanted = false
        owner?.disarm(self)
    }

    func remove() {
        isWanted = false
        guard let owner else { return }
        self.owner = nil
        owner.remove(self)
    }
}
