import BatonRuntime
import Glibc

/// What becomes of the requests that a back end has in hand when it goes.
extension VhostUserDevice {
    /// Sees to it that the requests of the queues just started are known.
    func track() {
        guard needsTracking else { return }
        guard canTrack else { return hasUntrackedRequests = true }
        for queue in served where trackers[queue.index] == nil {
            guard Rings(queue, vm.addressSpace)?.usedIndex == bases[queue.index] else {
                hasUntrackedRequests = true
                continue
            }
            trackers[queue.index] = RingTracker(at: bases[queue.index])
        }
    }

    /// Whether nobody else notes which requests a back end has in hand.
    private var needsTracking: Bool {
        if let inflight, inflight.fd >= 0 { return false }
        return kind.linkStatus == nil && !kind.losesConnections
    }

    /// Who never comes back needs no tracking; who has more state than the
    /// queues (the files that a guest has open) cannot be followed.
    private var canTrack: Bool { kind.isStateless && chardev.canReconnect }

    /// Whether every kick and call must be seen here.
    var isTracking: Bool { needsTracking && canTrack }

    func follow(_ index: Int) {
        guard trackers[index] != nil, let queue = served.first(where: { $0.index == index }) else { return }
        trackers[index]?.follow(queue, vm.addressSpace)
    }

    /// The back end is gone: where the next one starts. What it had in hand is
    /// noted in the in-flight memory, or put where the next one finds it.
    ///
    /// One that was cut off may end more of its requests meanwhile, so that this is done again when the next one has
    /// answered. Till then it finds those that it has not seen at the places where they were.
    func settle() {
        for queue in served {
            bases[queue.index] = Rings(queue, vm.addressSpace)?.usedIndex ?? 0
            follow(queue.index)
            guard let tracker = trackers[queue.index] else { continue }
            guard tracker.isComplete else {
                hasUntrackedRequests = true
                continue
            }
            tracker.arrange(queue, vm.addressSpace)
            bases[queue.index] = tracker.nextUsed
        }
    }

    /// Whether requests are known that no back end has ended.
    var hasRequestsInHand: Bool { trackers.contains { $0?.inHand.isEmpty == false } }

    func forgetInflight() {
        if let inflight, inflight.fd >= 0 { close(inflight.fd) }
        inflight = nil
    }
}
