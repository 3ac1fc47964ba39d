import BatonRuntime
import CBaton
import Glibc

/// What the host tells of a device beside the device's own interrupts: that it
/// is broken, and that the host wants it back. Owns the eventfds.
///
/// They are looked at while the guest runs. What is signalled at another time
/// waits in the eventfd, also on its way to another process.
public final class VFIONotices {
    /// The index of the interrupt.
    public enum Kind: UInt32, CaseIterable {
        /// VFIO_PCI_ERR_IRQ_INDEX: an uncorrectable error, which PCI Express
        /// functions report.
        case error = 3
        /// VFIO_PCI_REQ_IRQ_INDEX: the device is to be removed from the host, or
        /// given to another driver. Comes again until it is let go.
        case request = 4
    }

    private unowned let device: VFIOPCIDevice
    private let wanted: [Kind]
    private var events: [Kind: Int32]
    private var isWatching = false

    /// - Parameter inherited: what the process before has set up.
    init(_ device: VFIOPCIDevice, wanted: [Kind], inherited: [Kind: Int32]) {
        self.device = device
        self.wanted = wanted
        events = inherited
    }

    deinit { for event in events.values { close(event) } }

    // MARK: Set-up

    /// Has the host tell what is wanted, if it can, and nothing else. What it
    /// tells already stays as it is.
    func update() {
        for kind in Kind.allCases {
            let isWanted = wanted.contains(kind) && device.shape.notices.contains(kind)
            if isWanted && events[kind] == nil {
                enable(kind)
            } else if !isWanted, let event = events.removeValue(forKey: kind) {
                warn(device.transport.disableInterrupts(kind.rawValue), "disable", kind)
                device.vm.loop.unwatch(event)
                close(event)
            }
        }
    }

    private func enable(_ kind: Kind) {
        let event = cbaton_eventfd()
        let result = event >= 0 ? device.transport.setEvents(kind.rawValue, [event]) : errno
        guard result == 0 else {
            warn(result, "set up", kind)
            if event >= 0 { close(event) }
            return
        }
        events[kind] = event
        if isWatching { watch(kind, event) }
    }

    private func warn(_ result: Int32, _ deed: String, _ kind: Kind) {
        guard result != 0 else { return }
        let what = "\(device.label): failed to \(deed) the \(kind) interrupt"
        Report.warning(VMMError.system(what, errno: result).message)
    }

    // MARK: Events

    func resume() {
        isWatching = true
        for (kind, event) in events { watch(kind, event) }
    }

    func pause() {
        isWatching = false
        for event in events.values { device.vm.loop.unwatch(event) }
    }

    private func watch(_ kind: Kind, _ event: Int32) {
        do throws(VMMError) {
            try device.vm.loop.watch(event, .readable) { [unowned self] _ in
                guard cbaton_eventfd_take(event) > 0 else { return }
                tell(kind)
            }
        } catch {
            Report.warning("\(device.label): \(error.message)")
        }
    }

    /// Does as QEMU.
    private func tell(_ kind: Kind) {
        switch kind {
        case .error:
            Report.error(
                VMMError(
                    "\(device.label): Unrecoverable error detected. "
                        + "Please collect any data possible and then kill the guest"))
            device.vm.stop(.internalError)
        case .request:
            Report.warning(
                "\(device.label): the host wants the device back: "
                    + "Bus '\(device.bus?.busName ?? "")' does not support hotplugging")
        }
    }

    // MARK: Over an update

    /// Saves the descriptors under this name, numbered by their kinds.
    public func handOver(_ name: String, to cpr: CprController) throws(VMMError) {
        for (kind, event) in events { try cpr.fds.resave(name, id: Int(kind.rawValue), event) }
    }

    /// Finds what `handOver` has saved. It stays saved.
    static func find(_ name: String, cpr: CprController) -> [Kind: Int32] {
        var found: [Kind: Int32] = [:]
        for kind in Kind.allCases { found[kind] = cpr.fds.find(name, id: Int(kind.rawValue)) }
        return found
    }
}
