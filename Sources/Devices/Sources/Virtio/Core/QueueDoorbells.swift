import BatonRuntime
import CBaton
import Glibc

/// Has drivers' notifications counted on eventfds, where the accelerator can do that: the guest goes on at once, and
/// the loop serves the queue, or whoever serves it elsewhere sees the eventfd itself.
///
/// A queue has a doorbell while it is in use, from when the guest runs on. A notification that finds none, before that
/// or without such an accelerator, is a call of the device (`VirtioDevice.notify`). A count that is left when the
/// machine is paused stands for buffers that `VirtioDevice.resume` finds in the queue, here or in the next process; the
/// eventfds of other servers are theirs to keep.
final class QueueDoorbells {
    private enum Bell: Equatable {
        case none
        case armed(Doorbell, VirtioNotification)
        /// The accelerator did not take it.
        case refused(VirtioNotification)

        var notification: VirtioNotification? {
            switch self {
            case .none: nil
            case .armed(_, let notification), .refused(let notification): notification
            }
        }
    }

    private unowned let device: VirtioDevice
    private let vm: VirtualMachine
    /// By queue.
    private var bells: [Bell]
    /// Eventfds of queues that are served here; -1 for none. Owned.
    private var events: [Int32]

    init(_ device: VirtioDevice) {
        self.device = device
        vm = device.vm
        bells = Array(repeating: .none, count: device.queues.count)
        events = Array(repeating: -1, count: device.queues.count)
    }

    deinit { for index in bells.indices { _ = disarm(index) } }

    /// The driver's set-up, the place of notifications, or whether the machine runs has changed.
    func update() {
        guard vm.accelerator?.takesDoorbells == true else { return }
        for queue in device.queues {
            let wanted =
                device.isOperating && queue.ready ? device.transport?.notification(queue: queue.index) : nil
            guard wanted != bells[queue.index].notification else { continue }
            // Its driver may count on what it has been told; whether the device still is in use shows then.
            if disarm(queue.index) { vm.loop.later { [weak device] in device?.rang(queue) } }
            if let wanted, device.isRunning { arm(queue, wanted) }
        }
    }

    private func arm(_ queue: VirtQueue, _ notification: VirtioNotification) {
        let index = queue.index
        bells[index] = .refused(notification)
        guard let fd = device.isServedHere(queue) ? makeEvent(queue) : device.kickEvent(queue) else { return }
        var doorbell = Doorbell(
            address: notification.address, width: notification.width, value: notification.value, fd: fd)
        var isTaken = vm.accelerator?.add(doorbell) == true
        if !isTaken, notification.width == 0 {
            doorbell.width = VirtioNotification.usualWidth
            isTaken = vm.accelerator?.add(doorbell) == true
        }
        if isTaken { bells[index] = .armed(doorbell, notification) } else { _ = closeEvent(index) }
    }

    /// - Returns: whether there has been a notification that nobody has looked at.
    private func disarm(_ index: Int) -> Bool {
        if case .armed(let doorbell, _) = bells[index] { vm.accelerator?.remove(doorbell) }
        bells[index] = .none
        return closeEvent(index)
    }

    // MARK: Eventfds of this process

    private func makeEvent(_ queue: VirtQueue) -> Int32? {
        let fd = cbaton_eventfd()
        guard fd >= 0 else { return nil }
        do throws(VMMError) {
            try vm.loop.watch(fd, .readable) { [weak device] _ in
                if cbaton_eventfd_take(fd) > 0 { device?.rang(queue) }
            }
        } catch {
            close(fd)
            return nil
        }
        events[queue.index] = fd
        return fd
    }

    private func closeEvent(_ index: Int) -> Bool {
        let fd = events[index]
        guard fd >= 0 else { return false }
        events[index] = -1
        vm.loop.unwatch(fd)
        let wasRung = cbaton_eventfd_take(fd) > 0
        close(fd)
        return wasRung
    }
}
