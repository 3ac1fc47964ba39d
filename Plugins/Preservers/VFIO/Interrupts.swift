import BatonRuntime
import CBaton
import Glibc

/// A device's interrupts: eventfds that the kernel signals, of INTx, MSI or
/// MSI-X, whichever the guest has switched on. Owns them.
///
/// All vectors of MSI-X are set up when it is switched on: masks are the VMM's
/// (`PCIMSIX`), so none is lost between a mask and its end.
///
/// The kernel masks INTx when it signals it. What the guest does about it shows
/// in its next access to a BAR, so meanwhile the VMM sees all of these, as
/// QEMU's does without KVM.
final class VFIOInterrupts {
    enum Kind: UInt32 {
        case intx = 0
        case msi = 1
        case msix = 2
    }

    private unowned let device: VFIOPCIDevice
    private(set) var kind: Kind?
    private(set) var events: [Int32] = []
    /// INTx has come and is masked in the kernel.
    private(set) var isPending = false
    private var isWatching = false
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

    deinit { for event in events { close(event) } }

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
        var argument = VFIOArgument(bytes: [UInt8](repeating: 0, count: 20 + 4 * count))
        argument.set(0, UInt32(20 + 4 * count))
        argument.set(4, VFIO.SetIRQs.eventfds | VFIO.SetIRQs.trigger)
        argument.set(8, kind.rawValue)
        argument.set(16, UInt32(count))
        for index in 0..<count {
            let event = cbaton_eventfd()
            guard event >= 0 else { break }
            made.append(event)
            argument.set(20 + 4 * index, UInt32(bitPattern: event))
        }
        guard made.count == count, argument.call(device.file.fd, VFIO.Request.deviceSetIRQs) == 0 else {
            let failure = VMMError.system("vfio \(device.hostName): failed to set up \(count) \(kind) interrupts")
            Report.warning(failure.message)
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
        var argument = VFIOArgument(size: 20, flags: VFIO.SetIRQs.noData | VFIO.SetIRQs.trigger)
        argument.set(8, kind.rawValue)
        if argument.call(device.file.fd, VFIO.Request.deviceSetIRQs) != 0 {
            Report.warning(VMMError.system("vfio \(device.hostName): failed to disable \(kind) interrupts").message)
        }
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
        for (vector, event) in events.enumerated() {
            do throws(VMMError) {
                try device.vm.loop.watch(event, .readable) { [unowned self] _ in signalled(vector) }
            } catch {
                Report.warning("vfio \(device.hostName): \(error.message)")
            }
        }
    }

    private func stopWatching() { for event in events { device.vm.loop.unwatch(event) } }

    private func signalled(_ vector: Int) {
        guard events.indices.contains(vector), cbaton_eventfd_take(events[vector]) > 0 else { return }
        switch kind {
        case .msix: device.msix?.notify(vector)
        case .msi: device.msi?.notify(vector)
        case .intx:
            isPending = true
            trap()
            device.setInterrupt(true)
        case nil: break
        }
    }

    /// Takes over the state of a checkpoint.
    func restore(isPending: Bool) { self.isPending = isPending }

    // MARK: INTx

    private func trap() {
        device.setDirectAccess(false)
        guard timer?.deadline ?? 0 <= EventLoop.now else { return }
        timer = device.vm.loop.schedule(at: EventLoop.now + VFIOInterrupts.trapTime) { [unowned self] in
            timer = nil
            if isPending { trap() } else { device.setDirectAccess(true) }
        }
    }

    /// The guest has accessed the device: it may have done what the interrupt
    /// wanted. If not, the kernel signals it again at once.
    func acknowledge() {
        guard isPending else { return }
        isPending = false
        device.setInterrupt(false)
        var argument = VFIOArgument(size: 20, flags: VFIO.SetIRQs.noData | VFIO.SetIRQs.unmask)
        argument.set(16, 1 as UInt32)
        if argument.call(device.file.fd, VFIO.Request.deviceSetIRQs) != 0 {
            Report.warning(VMMError.system("vfio \(device.hostName): failed to unmask INTx").message)
        }
    }
}
