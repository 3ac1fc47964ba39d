import BatonRuntime
import Glibc

/// virtio-net (virtio 1.3, 5.1) on a net back end: one pair of queues, no
/// offloads.
public final class VirtioNet: VirtioDevice {
    private let backend: NetBackend
    private let parts: UnsafeMutablePointer<UnsafeRawBufferPointer>

    private enum Feature {
        static let mac: UInt64 = 1 << 5
        static let mergeableBuffers: UInt64 = 1 << 15
        static let status: UInt64 = 1 << 16
    }

    private static let headerSize = 12
    /// An Ethernet header and a tag with the largest IP packet: more than any
    /// frame without offloads.
    static let maxFrame = 65_553

    private var receiveQueue: VirtQueue { queues[0] }
    private var transmitQueue: VirtQueue { queues[1] }

    /// - Parameter mac: six bytes.
    public init(vm: VirtualMachine, backend: NetBackend, mac: [UInt8]) {
        self.backend = backend
        parts = .allocate(capacity: VirtQueue.maxSegments)
        var config = [UInt8](repeating: 0, count: 12)
        for (index, byte) in mac.prefix(6).enumerated() { config[index] = byte }
        config.put(UInt16(backend.linkUp ? 1 : 0), at: 6)
        config.put(UInt16(1), at: 8)
        super.init(
            model: "virtio-net", deviceID: 1, vm: vm,
            features: Feature.mac | Feature.status | Feature.mergeableBuffers, queueSizes: [256, 256], config: config)
        backend.receiver = { [unowned self] frame in receive(frame) }
        backend.linkChanged = { [unowned self] up in linkChanged(up) }
    }

    deinit { parts.deallocate() }

    private func linkChanged(_ up: Bool) {
        let value: UInt8 = up ? 1 : 0
        guard config[6] != value else { return }
        config[6] = value
        configChanged()
    }

    public override func handle(_ queue: VirtQueue) {
        if queue === transmitQueue {
            transmit(queue)
        } else if isRunning {
            backend.receiveReady()
        }
    }

    // MARK: From the guest

    private func transmit(_ queue: VirtQueue) {
        repeat {
            while let chain = queue.next() {
                let length = chain.readableBytes &- VirtioNet.headerSize
                guard length >= 0 else { return fail("frame without a header") }
                if length < 14 || length > VirtioNet.maxFrame {
                    Log.guestError("\(stateName): frame of \(length) bytes dropped")
                } else {
                    send(queue.readable(chain))
                }
                queue.consume()
                queue.push(chain, written: 0)
            }
        } while queue.enableNotifications()
        queue.signal()
    }

    private func send(_ segments: UnsafeMutableBufferPointer<iovec>) {
        var skip = VirtioNet.headerSize
        var count = 0
        for segment in segments {
            if skip >= segment.iov_len {
                skip &-= segment.iov_len
                continue
            }
            parts[count] = UnsafeRawBufferPointer(
                start: segment.iov_base.map { UnsafeRawPointer($0 + skip) }, count: segment.iov_len &- skip)
            count &+= 1
            skip = 0
        }
        backend.send(UnsafeBufferPointer(start: parts, count: count))
    }

    // MARK: To the guest

    /// - Returns: false when there is no room: the back end keeps the frame.
    private func receive(_ frame: UnsafeRawBufferPointer) -> Bool {
        guard isRunning else { return false }
        // A card that is not in use hears nothing.
        guard isOperating, receiveQueue.ready else { return true }
        guard frame.count > 0, frame.count <= VirtioNet.maxFrame else { return true }
        if deliver(frame) { return true }
        guard isOperating else { return true }
        return receiveQueue.enableNotifications() && deliver(frame)
    }

    private func deliver(_ frame: UnsafeRawBufferPointer) -> Bool {
        let queue = receiveQueue
        let mergeable = has(Feature.mergeableBuffers)
        var firstHeader: UnsafeMutableRawPointer?
        var buffers: UInt16 = 0
        var done = 0
        while done < frame.count {
            guard let chain = queue.next() else {
                queue.unconsume(Int(buffers))
                return false
            }
            let skip = buffers == 0 ? VirtioNet.headerSize : 0
            guard chain.writableBytes > skip else {
                queue.unconsume(Int(buffers))
                fail("receive buffer of \(chain.writableBytes) bytes")
                return true
            }
            if buffers == 0 {
                guard let header = writeHeader(queue, chain) else { return true }
                firstHeader = header
            }
            let rest = UnsafeRawBufferPointer(rebasing: frame[done...])
            let count = queue.copyIn(chain, offset: skip, from: rest)
            done &+= count
            queue.consume()
            queue.fill(chain.head, written: skip &+ count, at: buffers)
            buffers &+= 1
            if done < frame.count && !mergeable {
                // Not room enough in the buffer: the frame is dropped, and the
                // buffer used again.
                Log.guestError("\(stateName): frame of \(frame.count) bytes in a buffer of \(chain.writableBytes)")
                queue.unconsume(1)
                return true
            }
        }
        if mergeable, buffers > 1, let firstHeader {
            firstHeader.storeBytes(of: buffers, toByteOffset: 10, as: UInt16.self)
        }
        queue.publish(buffers)
        queue.signal()
        return true
    }

    /// Writes the header at the start of the first buffer: no offloads, one
    /// buffer.
    /// - Returns: the header's host address, for the number of buffers; it must
    ///   be in one piece (nil: the device has failed).
    private func writeHeader(_ queue: VirtQueue, _ chain: VirtioChain) -> UnsafeMutableRawPointer? {
        let header: (UInt64, UInt32) = (0, 1 << 16)
        withUnsafeBytes(of: header) {
            _ = queue.copyIn(chain, offset: 0, from: UnsafeRawBufferPointer(rebasing: $0[..<VirtioNet.headerSize]))
        }
        guard let first = queue.writable(chain).first, let base = first.iov_base,
            first.iov_len >= VirtioNet.headerSize || !has(Feature.mergeableBuffers)
        else {
            fail("receive buffer whose header is in several pieces")
            return nil
        }
        return base
    }

    // MARK: State

    public override func resumeDevice() { backend.receiveReady() }

    public override func loadDevice(from reader: StateReader) throws(VMMError) -> () -> Void {
        // The link may have changed over the restart; the generation that the
        // driver sees must change with it.
        let up = try reader.bool("link-up")
        return {
            let now = self.config[6] & 1 != 0
            if up != now { self.configChanged() }
        }
    }

    public override func saveDevice(to writer: inout StateWriter) {
        writer.put("link-up", config[6] & 1 != 0)
    }
}
