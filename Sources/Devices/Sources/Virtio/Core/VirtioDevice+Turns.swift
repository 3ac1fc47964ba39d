import BatonRuntime

/// A driver can make more available than can be done at once: a device serves
/// its queues a share at a time (`EventLoop.mayGoOn`), and goes on in later
/// turns of the loop. A chain that is not finished stays in the available ring.
extension VirtioDevice {
    /// What became of a chain.
    enum Served {
        /// It goes into the used ring, with so many bytes written.
        case used(Int)
        /// It stays in the ring, as the device's share is used up.
        case unfinished
        /// It stays in the ring: the device has failed, or somebody else goes on.
        case stopped
    }

    /// Serves the chains of a queue until there are no more, or until the
    /// device's share of this turn is used up: the rest follows in later turns.
    /// - Parameters:
    ///   - byteCost: what a byte of a chain costs, see `EventLoop.mayGoOn`.
    ///   - serve: carries out a chain.
    @inline(__always)
    func serveChains(_ queue: VirtQueue, byteCost: Int = 1, _ serve: (VirtioChain) -> Served) {
        let loop = vm.loop
        repeat {
            while let chain = queue.next() {
                switch serve(chain) {
                case .used(let written):
                    queue.consume()
                    queue.push(chain, written: written)
                    // A system call, and a look at each descriptor.
                    let work = 1 << 14 &+ (chain.readableCount &+ chain.writableCount) &* 128
                    if !loop.mayGoOn(after: work &+ (chain.readableBytes &+ written) &* byteCost) {
                        return putOff(queue)
                    }
                case .unfinished: return putOff(queue)
                case .stopped: return queue.signal()
                }
            }
        } while queue.enableNotifications()
        queue.signal()
    }

    /// Goes on with a queue in a later turn. The guest's slice ends, as other
    /// devices would have their shares in it one after the other.
    @inline(never)
    func putOff(_ queue: VirtQueue) {
        queue.signal()
        vm.accelerator?.yield()
        guard !queue.isPutOff else { return }
        queue.isPutOff = true
        vm.loop.postpone { [weak self] in
            queue.isPutOff = false
            // After a pause `resume` looks for what is left.
            guard let self, isRunning, isOperating, queue.ready else { return }
            handle(queue)
        }
    }
}
