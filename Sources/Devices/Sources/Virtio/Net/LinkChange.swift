import BatonRuntime

/// The link of a network card goes down and up before its driver's eyes, after a load into a process that has opened the
/// back end anew: what the guest has agreed on with others on the wire, such as its address, may hold no more.
///
/// After that the driver is asked to announce its addresses, if it has negotiated VIRTIO_NET_F_GUEST_ANNOUNCE (virtio 1.3,
/// 5.1.6.5.4). What is left to do is part of the card's saved state, and begins anew where the guest goes on.
final class LinkChange {
    /// How long the link stays down once the driver has read that it is, in nanoseconds: a Linux tells its programs of
    /// links no more than once a second, and of none that is up again by then (net/core/link_watch.c).
    static let downTime: Int64 = 1_500_000_000
    /// The same for a driver that does not read it.
    static let downLimit: Int64 = 10_000_000_000
    /// How long after the link is up the driver is asked to announce itself, in nanoseconds. A Linux sends nothing before
    /// it has set its queue for the card up again.
    static let announceDelay: Int64 = 200_000_000

    /// VIRTIO_NET_S_LINK_UP and VIRTIO_NET_S_ANNOUNCE.
    private static let linkUp: UInt8 = 1, announce: UInt8 = 2
    /// Where the configuration space has the status.
    static let statusOffset = 6

    private enum Step {
        case none
        /// The driver sees, or is to see, the link down.
        case down
        /// The link is up, and the driver is to be asked soon.
        case up
        /// The driver has been asked, and has not acknowledged it.
        case announcing
    }

    private unowned let device: VirtioDevice
    /// Sets the status anew (`status`), and tells the driver.
    private let show: () -> Void
    private var step = Step.none
    private var wasRead = false
    private var timer: EventLoop.Timer?

    /// - Parameters:
    ///   - device: the card, which has this.
    ///   - show: sets the card's status anew (`status`), and tells the driver.
    init(of device: VirtioDevice, show: @escaping () -> Void) {
        self.device = device
        self.show = show
    }

    deinit { timer?.cancel() }

    /// The low byte of the card's status.
    /// - Parameter linkUp: whether the back end has a link.
    func status(linkUp: Bool) -> UInt8 {
        (linkUp && step != .down ? Self.linkUp : 0) | (step == .announcing ? Self.announce : 0)
    }

    // MARK: Steps

    /// The machine runs: goes on with what is left to do.
    func resume() {
        switch step {
        case .none: break
        case .down:
            wasRead = false
            show()
            wait(Self.downLimit)
        case .up: wait(Self.announceDelay)
        case .announcing: show()
        }
    }

    func pause() {
        timer?.cancel()
        timer = nil
    }

    /// The driver sets the card up anew, and reads the link by itself.
    func reset() {
        pause()
        step = .none
    }

    private func wait(_ nanoseconds: Int64) {
        timer?.cancel()
        timer = device.vm.loop.schedule(at: EventLoop.now &+ nanoseconds) { [weak self] in self?.timeIsUp() }
    }

    private func timeIsUp() {
        timer = nil
        let announces = device.has(VirtioNetFeature.guestAnnounce)
        switch step {
        case .down:
            step = announces ? .up : .none
            show()
            if announces { wait(Self.announceDelay) }
        case .up:
            step = .announcing
            show()
        case .none, .announcing: break
        }
    }

    /// The driver has read some of the configuration space.
    func driverRead(offset: Int, width: Int) {
        guard step == .down, !wasRead, timer != nil else { return }
        guard offset <= Self.statusOffset, offset + width > Self.statusOffset else { return }
        wasRead = true
        wait(Self.downTime)
    }

    /// The driver acknowledges that it was asked to announce itself (VIRTIO_NET_CTRL_ANNOUNCE_ACK).
    /// - Returns: false when it was not asked.
    func acknowledge() -> Bool {
        guard step == .announcing else { return false }
        step = .none
        return true
    }

    // MARK: State

    /// A version that does not know the fields has the link up at once, which is the rest of a change.
    func save(to writer: inout StateWriter) {
        switch step {
        case .none: break
        case .down: writer.put("owes-link-change", true, optional: true)
        case .up, .announcing: writer.put("owes-announcement", true, optional: true)
        }
    }

    /// Reads and checks what `save` wrote.
    /// - Returns: what applies it, once the device has its features and its status.
    func loader(from reader: StateReader) throws(VMMError) -> () -> Void {
        let owesChange = reader.has("owes-link-change") ? try reader.bool("owes-link-change") : false
        let owesAnnouncement = reader.has("owes-announcement") ? try reader.bool("owes-announcement") : false
        return { [self] in
            reset()
            // A driver that has not set the card up reads the link when it does.
            guard device.status & VirtioStatus.driverOK != 0, device.has(VirtioNetFeature.status) else { return }
            let handover = device.vm.handover
            if owesChange || handover?.isSuccessor == false {
                step = .down
            } else if owesAnnouncement, device.has(VirtioNetFeature.guestAnnounce) {
                step = .announcing
            }
        }
    }
}
