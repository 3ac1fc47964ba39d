import BatonRuntime
import CBaton
import Glibc

/// A device's interrupts: eventfds that the device signals, of INTx, MSI or
/// MSI-X, whichever the guest has switched on. Owns them.
///
/// All vectors of MSI-X are set up when it is switched on: masks are the VMM's
/// (`PCIMSIX`), so none is lost between a mask and its end. Messages that are not
/// masked reach the guest without the VMM where the accelerator can do that.
///
/// The device masks INTx when it signals it. What the guest does about it shows
/// in its next access to a BAR, so meanwhile the VMM sees all of these, as
/// QEMU's does without KVM.
public final class VFIOInterrupts {
    public enum Kind: UInt32 {
        case intx = 0
        case msi = 1
        case msix = 2
    }

    private unowned let device: VFIOPCIDevice
    public private(set) var kind: Kind?
    public private(set) var events: [Int32] = []
    /// INTx has come and is masked in the device.
    private(set) var isPending = false
    private var isWatching = false
    /// What makes messages of `events`, by vector.
    private var messages: [InterruptEvent] = []
    private var timer: EventLoop.Timer?
    /// Nanoseconds after the guest's last INTx until its accesses are direct
    /// again; QEMU's x-intx-mmap-timeout-ms.
    private static let trapTime: Int64 = 1_100_000_000

    init(_ device: VFIOPCIDevice) { self.device = device }

    /// Takes over what the process before has set up.
    init(_ device: VFIOPCIDevice, inherited kind: Kind?, events: [Int32]) {
        self.device = device
        self.kind = kind
        self.events = events
    }

    deinit {
        for message in messages { message.remove() }
        for event in events { close(event) }
    }

    // MARK: Set-up

    private var desired: (kind: Kind, count: Int)? {
        func most(_ kind: Kind) -> Int { Int(device.shape.interrupts[Int(kind.rawValue)]) }
        if let msix = device.msix, msix.isEnabled { return (.msix, min(msix.vectors, most(.msix))) }
        if let msi = device.msi, msi.isEnabled { return (.msi, min(msi.enabledVectors, most(.msi))) }
        return device.pin > 0 && most(.intx) > 0 ? (.intx, 1) : nil
    }

    /// Has the device signal what the guest has switched on.
    func update() {
        let desired = desired
        guard desired?.kind != kind || (desired?.count ?? 0) != events.count else { return }
        disable()
        if let desired { enable(desired.kind, desired.count) }
    }

    private func enable(_ kind: Kind, _ count: Int) {
        var made: [Int32] = []
        for _ in 0..<count {
            let event = cbaton_eventfd()
            guard event >= 0 else { break }
            made.append(event)
        }
        let result = made.count == count ? device.transport.setEvents(kind.rawValue, made) : errno
        guard result == 0 else {
            let what = "\(device.label): failed to set up \(count) \(kind) interrupts"
            Report.warning(VMMError.system(what, errno: result).message)
            for event in made { close(event) }
            return
        }
        self.kind = kind
        events = made
        if isWatching { startWatching() }
    }

    func disable() {
        guard let kind else { return }
        stopWatching()
        let result = device.transport.disableInterrupts(kind.rawValue)
        if result != 0 {
            let what = "\(device.label): failed to disable \(kind) interrupts"
            Report.warning(VMMError.system(what, errno: result).message)
        }
        for message in messages {
            device.remove(message)
            message.remove()
        }
        messages = []
        for event in events { close(event) }
        events = []
        self.kind = nil
        isPending = false
        if kind == .intx { device.setInterrupt(false) }
    }

    // MARK: Events

    /// From here on what the device signals reaches the guest; what it has
    /// signalled before is in the eventfds.
    func resume() {
        isWatching = true
        startWatching()
        if isPending { trap() } else { device.setDirectAccess(true) }
    }

    func pause() {
        stopWatching()
        isWatching = false
        timer?.cancel()
        timer = nil
    }

    private func startWatching() {
        do throws(VMMError) {
            if kind == .intx {
                for event in events {
                    try device.vm.loop.watch(event, .readable) { [unowned self] _ in pinSignalled() }
                }
            } else {
                if messages.isEmpty { makeMessages() }
                for message in messages { try message.resume() }
            }
        } catch {
            Report.warning("\(device.label): \(error.message)")
        }
    }

    private func stopWatching() {
        for message in messages { message.pause() }
        if kind == .intx { for event in events { device.vm.loop.unwatch(event) } }
    }

    private func makeMessages() {
        let isExtended = kind == .msix
        messages = events.indices.map { vector in
            InterruptEvent(vm: device.vm, event: events[vector]) { [unowned device] in
                isExtended ? device.msix?.directMessage(vector) : device.msi?.directMessage(vector)
            } onEvent: { [unowned device] in
                if isExtended { device.msix?.notify(vector) } else { device.msi?.notify(vector) }
            }
        }
        for message in messages { device.add(message) }
    }

    private func pinSignalled() {
        guard kind == .intx, let event = events.first, cbaton_eventfd_take(event) > 0 else { return }
        isPending = true
        trap()
        device.setInterrupt(true)
    }

    /// Takes over the state of a checkpoint.
    func restore(isPending: Bool) { self.isPending = isPending }

    // MARK: INTx

    private func trap() {
        device.setDirectAccess(false)
        guard timer?.deadline ?? 0 <= EventLoop.now else { return }
        timer = device.vm.loop.schedule(at: EventLoop.now + VFIOInterrupts.trapTime) { [unowned self] in
            timer = nil
            guard !isPending else { return trap() }
            // A CPU whose access KVM is about to hand to us would have KVM carry it out by what is mapped now, byte by
            // byte, which a device's registers do not take.
            device.vm.whileCPUsStand { device.setDirectAccess(true) }
        }
    }

    /// The guest has accessed the device: it may have done what the interrupt
    /// wanted. If not, the device signals it again at once.
    func acknowledge() {
        guard isPending else { return }
        isPending = false
        device.setInterrupt(false)
        let result = device.transport.unmaskINTx()
        if result != 0 {
            Report.warning(VMMError.system("\(device.label): failed to unmask INTx", errno: result).message)
        }
    }

    // MARK: Over an update

    /// Saves the descriptors under this name, numbered, and writes what they are.
    public func handOver(_ name: String, to cpr: CprController, _ state: inout StateWriter) throws(VMMError) {
        for (vector, event) in events.enumerated() { try cpr.fds.resave(name, id: vector, event) }
        state.put("interrupt-kind", kind.map { UInt64($0.rawValue) + 1 } ?? 0)
        state.put("interrupt-count", UInt64(events.count))
    }
}

/// The interrupts and notices of the process before. The descriptors stay
/// saved until `claim`.
public struct VFIOInheritedInterrupts {
    let kind: VFIOInterrupts.Kind?
    let events: [Int32]
    let notices: [VFIONotices.Kind: Int32]
    private let name: String
    private let noticeName: String

    /// Finds what `VFIOInterrupts.handOver` and `VFIONotices.handOver` have
    /// saved under these names, and written.
    public init(_ name: String, notices noticeName: String, _ state: StateReader, cpr: CprController) throws(VMMError) {
        let number = try state.unsigned("interrupt-kind", in: 0...3)
        let count = Int(try state.unsigned("interrupt-count", in: 0...2048))
        var found: [Int32] = []
        for id in 0..<count {
            guard let event = cpr.fds.find(name, id: id) else {
                throw VMMError("the CPR state lacks the descriptor '\(name)' id \(id)")
            }
            found.append(event)
        }
        kind = number == 0 ? nil : VFIOInterrupts.Kind(rawValue: UInt32(number - 1))
        events = found
        notices = VFIONotices.find(noticeName, cpr: cpr)
        self.name = name
        self.noticeName = noticeName
    }

    /// The descriptors change hands: they are the device's from here on.
    public func claim(_ cpr: CprController) {
        for id in events.indices { cpr.fds.delete(name, id: id) }
        for kind in notices.keys { cpr.fds.delete(noticeName, id: Int(kind.rawValue)) }
    }
}
