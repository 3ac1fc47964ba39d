import BatonRuntime
import Glibc

/// virtio-console (virtio 1.3, 5.3) with its one port, without the multiport
/// feature: the guest's hvc0.
public final class VirtioConsole: VirtioDevice, ChardevFrontend {
    /// The host side; nil when no `virtconsole` was plugged.
    public private(set) var chardev: Chardev?
    /// Bytes of the first chain in the transmit queue that the chardev has.
    private var sent = 0

    private var receiveQueue: VirtQueue { queues[0] }
    private var transmitQueue: VirtQueue { queues[1] }

    public init(vm: VirtualMachine) {
        super.init(
            model: "virtio-serial", deviceID: 3, vm: vm, features: 0, queueSizes: [128, 128],
            config: [UInt8](repeating: 0, count: 12))
    }

    /// Connects the port: `-device virtconsole,chardev=…`.
    /// - Throws: an error when the port or the chardev is taken.
    public func connect(_ chardev: Chardev?) throws(VMMError) {
        guard !isConnected else {
            throw VMMError("virtio-serial-bus: Out-of-range port id specified, max. allowed: 0")
        }
        try chardev?.attach(self)
        isConnected = true
        self.chardev = chardev
    }
    public private(set) var isConnected = false

    public override func handle(_ queue: VirtQueue) {
        if queue === transmitQueue {
            transmit()
        } else if isRunning {
            // Suppresses further notifications until input waits for room.
            chardev?.acceptInput()
        }
    }

    // MARK: From the guest

    private func transmit() {
        let queue = transmitQueue
        serveChains(queue) { chain in
            let result = send(queue.readable(chain))
            if case .used = result { sent = 0 }
            return result
        }
    }

    /// The most that a chardev is given at once: one may take a gigabyte.
    private static let piece = 1 << 16

    /// Sends what was not sent of a chain.
    private func send(_ segments: UnsafeMutableBufferPointer<iovec>) -> Served {
        guard let chardev else { return .used(0) }
        var skip = sent
        for segment in segments {
            if skip >= segment.iov_len {
                skip -= segment.iov_len
                continue
            }
            let whole = UnsafeRawBufferPointer(start: segment.iov_base, count: segment.iov_len)
            while skip < whole.count {
                let part = UnsafeRawBufferPointer(
                    rebasing: whole[skip..<min(whole.count, skip + VirtioConsole.piece)])
                let taken = min(part.count, max(0, chardev.write(part)))
                sent += taken
                skip += taken
                // `chardevWritable` goes on.
                if taken < part.count { return .stopped }
                if !vm.loop.mayGoOn(after: taken * 4) { return .unfinished }
            }
            skip = 0
        }
        return .used(0)
    }

    public func chardevWritable() {
        if isRunning, isOperating, !transmitQueue.isPutOff { transmit() }
    }

    // MARK: To the guest

    public func chardevCanReceive() -> Int {
        guard isRunning, isOperating else { return 0 }
        guard let chain = receiveQueue.next() else {
            // Ask to be told of the next buffer, unless it has just come.
            guard isOperating, receiveQueue.enableNotifications(), let chain = receiveQueue.next() else { return 0 }
            return chain.writableBytes
        }
        return chain.writableBytes
    }

    public func chardevReceive(_ bytes: UnsafeRawBufferPointer) {
        guard isRunning, isOperating else { return }
        var rest = bytes
        while rest.count > 0, let chain = receiveQueue.next() {
            guard chain.writableBytes > 0 else { return fail("receive buffer that is not writable") }
            let count = receiveQueue.copyIn(chain, offset: 0, from: rest)
            receiveQueue.consume()
            receiveQueue.push(chain, written: count)
            rest = UnsafeRawBufferPointer(rebasing: rest[count...])
        }
        receiveQueue.signal()
    }

    // MARK: State

    public override func resetDevice() { sent = 0 }

    public override func resumeDevice() {
        guard isOperating else { return }
        chardev?.acceptInput()
    }

    public override func saveDevice(to writer: inout StateWriter) {
        writer.put("sent", UInt64(sent))
    }

    public override func loadDevice(from reader: StateReader) throws(VMMError) -> () -> Void {
        let value = try reader.unsigned("sent", in: 0...UInt64(UInt32.max))
        return { self.sent = Int(value) }
    }
}
