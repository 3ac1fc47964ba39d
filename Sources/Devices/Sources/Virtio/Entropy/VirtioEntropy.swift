import BatonRuntime
import CBaton
import Glibc

/// virtio-rng (virtio 1.3, 5.4): bytes of the host's getrandom(2).
public final class VirtioEntropy: VirtioDevice {
    /// At most this many bytes a chain, so that a huge buffer does not hold
    /// the machine up; the driver sees how many it got.
    private static let maxBytes = 1 << 16

    public init(vm: VirtualMachine) {
        super.init(model: "virtio-rng", deviceID: 4, vm: vm, features: 0, queueSizes: [8], config: [])
    }

    public override func handle(_ queue: VirtQueue) {
        // The host makes some hundred megabytes a second.
        serveChains(queue, byteCost: 32) { chain in
            guard chain.writableBytes > 0 else {
                fail("buffer that is not writable")
                return .stopped
            }
            let written = fill(queue.writable(chain))
            queue.didWrite(chain, length: written)
            return .used(written)
        }
    }

    private func fill(_ segments: UnsafeMutableBufferPointer<iovec>) -> Int {
        var done = 0
        for segment in segments {
            var position = 0
            while position < segment.iov_len, done < VirtioEntropy.maxBytes, let base = segment.iov_base {
                let count = min(segment.iov_len - position, VirtioEntropy.maxBytes - done)
                let got = retryingInterrupts { cbaton_getrandom(base + position, count) }
                guard got > 0 else { return done }
                position += got
                done += got
            }
        }
        return done
    }
}
