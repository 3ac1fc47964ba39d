import BatonRuntime
import Glibc

/// virtio-balloon (virtio 1.2, 5.5): the guest gives pages back to the host, as many as it is asked for (`balloon`), or,
/// by free page reporting, those that it does not use at the time.
///
/// Only a machine that runs here discards pages: in an update, the VMM that has the guest. With pages that somebody has
/// pinned (`AddressSpace.hasPinnedPages`) the guest's messages are taken and nothing is discarded, as in QEMU.
public final class VirtioBalloon: VirtioDevice {
    /// What `-device virtio-balloon-…` says.
    public struct Properties {
        /// `deflate-on-oom=`: whether the guest may take pages back by itself when it has no others.
        public var deflatesOnOOM = false
        /// `free-page-reporting=`.
        public var reportsFreePages = false
        /// `page-poison=`: whether the guest says what it fills free pages with.
        public var pagePoison = true
        /// `guest-stats-polling-interval=`: seconds; 0 for no statistics.
        public var pollingInterval: Int64 = 0
        public init() {}
    }

    enum Feature {
        static let statistics: UInt64 = 1 << 1
        static let deflateOnOOM: UInt64 = 1 << 2
        static let pagePoison: UInt64 = 1 << 4
        static let reporting: UInt64 = 1 << 5
    }

    private enum Field {
        static let target = 0
        static let actual = 4
        static let poison = 12
        static let size = 16
    }

    private enum Queue {
        static let inflate = 0
        static let deflate = 1
        static let statistics = 2
        // Without VIRTIO_BALLOON_F_FREE_PAGE_HINT its queue is not there either.
        static let reporting = 3
    }

    /// What a page is to the driver, whatever it is to guest and host.
    static let pageSize = 4096
    /// Bytes between two looks at the clock in a range of free pages.
    private static let piece = 2 << 20

    /// Seconds between two readings of the guest's statistics; 0 for none.
    public let pollingInterval: Int64
    public private(set) var statistics = BalloonStatistics()
    private var statisticsTimer: EventLoop.Timer?
    /// Bytes that are done of the first chain, by queue: of page numbers, or of free pages.
    private var progress: [Int]
    private var change: SeldomEvent?
    private var hasWarned = false

    public init(vm: VirtualMachine, properties: Properties = Properties()) {
        var features = Feature.statistics
        if properties.deflatesOnOOM { features |= Feature.deflateOnOOM }
        if properties.pagePoison { features |= Feature.pagePoison }
        if properties.reportsFreePages { features |= Feature.reporting }
        var sizes: [UInt16] = [128, 128, 128]
        if properties.reportsFreePages { sizes.append(32) }
        pollingInterval = properties.pollingInterval
        progress = Array(repeating: 0, count: sizes.count)
        super.init(
            model: "virtio-balloon", deviceID: 5, vm: vm, features: features, queueSizes: sizes,
            config: [UInt8](repeating: 0, count: Field.size))
        change = SeldomEvent("BALLOON_CHANGE", vm: vm) { [weak self] in
            ["actual": .int(self?.guestMemory ?? 0)]
        }
    }

    // MARK: Target

    private func field(_ offset: Int) -> UInt32 {
        (0..<4).reduce(0) { $0 | UInt32(config[offset + $1]) << UInt32(8 * $1) }
    }

    /// Bytes of memory that the guest has, the balloon's not counted.
    public var guestMemory: Int64 {
        max(0, Int64(clamping: vm.ramSize) - Int64(field(Field.actual)) * Int64(VirtioBalloon.pageSize))
    }

    /// Asks the guest to have no more memory than that; it takes its time.
    /// - Parameter bytes: above 0; more than there is means all of it.
    public func setTarget(_ bytes: Int64) {
        let inBalloon = Int64(clamping: vm.ramSize) - min(bytes, Int64(clamping: vm.ramSize))
        config.put(UInt32(clamping: inBalloon / Int64(VirtioBalloon.pageSize)), at: Field.target)
        configChanged()
    }

    public override func writeConfig(offset: Int, width: Int, value: UInt64) {
        let isActual = offset >= Field.actual && offset + width <= Field.actual + 4
        let isPoison =
            offset >= Field.poison && offset + width <= Field.poison + 4 && has(Feature.pagePoison)
        guard isActual || isPoison else { return super.writeConfig(offset: offset, width: width, value: value) }
        let before = field(Field.actual)
        for index in 0..<width { config[offset + index] = UInt8(truncatingIfNeeded: value >> UInt64(8 * index)) }
        if field(Field.actual) != before { change?.report() }
    }

    // MARK: Queues

    public override func handle(_ queue: VirtQueue) {
        switch queue.index {
        case Queue.inflate, Queue.deflate: takePages(queue)
        case Queue.statistics: readStatistics(queue)
        default: takeFreePages(queue)
        }
    }

    /// Numbers of pages, which go into the balloon or leave it. Those that leave come back by the guest's accesses.
    private func takePages(_ queue: VirtQueue) {
        let inflates = queue.index == Queue.inflate
        serveChains(queue) { chain in
            guard inflates else { return .used(0) }
            return withUnsafeTemporaryAllocation(of: UInt32.self, capacity: 256) { numbers in
                while progress[queue.index] < chain.readableBytes {
                    let bytes = queue.copyOut(
                        chain, offset: progress[queue.index], to: UnsafeMutableRawBufferPointer(numbers))
                    inflate(UnsafeBufferPointer(rebasing: numbers[..<(bytes / 4)]))
                    progress[queue.index] += bytes
                    guard bytes > 0, progress[queue.index] < chain.readableBytes else { break }
                    // Some 0.8 us each.
                    if !vm.loop.mayGoOn(after: bytes << 11) { return .unfinished }
                }
                progress[queue.index] = 0
                return .used(0)
            }
        }
    }

    private func inflate(_ numbers: UnsafeBufferPointer<UInt32>) {
        // Neighbours are discarded at once.
        var start: UInt64 = 0
        var length: UInt64 = 0
        for number in numbers {
            let address = UInt64(number.littleEndian) * UInt64(VirtioBalloon.pageSize)
            if length > 0, address == start + length {
                length += UInt64(VirtioBalloon.pageSize)
                continue
            }
            if length > 0 { discard(start, length) }
            (start, length) = (address, UInt64(VirtioBalloon.pageSize))
        }
        if length > 0 { discard(start, length) }
    }

    /// Ranges of memory that the guest does not use. It has them back by using them.
    private func takeFreePages(_ queue: VirtQueue) {
        serveChains(queue) { chain in
            guard chain.readableCount == 0 else {
                fail("free pages that are not writable")
                return .stopped
            }
            var skip = progress[queue.index]
            for index in 0..<chain.writableCount {
                let length = queue.segments[index].iov_len
                if skip >= length {
                    skip -= length
                    continue
                }
                let address = queue.addresses[index]
                while skip < length {
                    let count = min(length - skip, VirtioBalloon.piece)
                    reported(address + UInt64(skip), UInt64(count))
                    skip += count
                    progress[queue.index] += count
                    // Some 0.2 us a page.
                    if !vm.loop.mayGoOn(after: count / 2) { return .unfinished }
                }
                skip = 0
            }
            progress[queue.index] = 0
            return .used(0)
        }
    }

    private func reported(_ address: UInt64, _ length: UInt64) {
        // The guest relies on what it fills free pages with: zeroes at most are what it finds again.
        if has(Feature.pagePoison) {
            guard field(Field.poison) == 0, let range = vm.addressSpace.ramRange(containing: address),
                range.block.discardsToZeroes
            else { return }
        }
        discard(address, length)
    }

    // MARK: Memory

    /// Gives pages of the guest's back to the host: what of them is RAM, and whole pages of the host's.
    private func discard(_ address: UInt64, _ length: UInt64) {
        var (address, length) = (address, length)
        while length > 0 {
            guard let range = vm.addressSpace.ramRange(containing: address), !range.readOnly, !range.hasDevice else {
                return Log.guestError("\(stateName): \(length) bytes at \(Hex(address)) are not RAM")
            }
            let count = min(length, range.end - address)
            discard(address, count, in: range)
            address += count
            length -= count
        }
    }

    private func discard(_ address: UInt64, _ length: UInt64, in range: RAMRange) {
        guard isRunning, !vm.addressSpace.hasPinnedPages else { return }
        let block = range.block
        let size = block.pageSize
        let begin = Int(range.host - block.host) + Int(address - range.start)
        let first = (begin + size - 1) / size * size
        let end = (begin + Int(length)) / size * size
        guard first < end else {
            if size > VirtioBalloon.pageSize {
                warn("\(stateName): Balloon used with backing page size > 4kiB, this may not be reliable")
            }
            return
        }
        let error = block.discard(offset: first, length: end - first)
        if error != 0 {
            let text = String(cString: strerror(error))
            return warn("\(stateName): memory of RAM block '\(block.name)' cannot be given back: \(text)")
        }
        vm.addressSpace.didWrite(address + UInt64(first - begin), length: UInt64(end - first))
    }

    /// Once, as the guest causes it.
    private func warn(_ text: String) {
        guard !hasWarned else { return }
        hasWarned = true
        Report.warning(text)
    }

    // MARK: Statistics

    /// The driver has filled its buffer, which it gets back when the next reading is due.
    private func readStatistics(_ queue: VirtQueue) {
        if let chain = queue.next() {
            withUnsafeTemporaryAllocation(byteCount: BalloonStatistics.largest, alignment: 8) { bytes in
                let count = queue.copyOut(chain, offset: 0, to: bytes)
                statistics.read(UnsafeRawBufferPointer(rebasing: bytes[..<count]))
            }
        }
        _ = queue.enableNotifications()
    }

    private func pollStatistics() {
        statisticsTimer?.cancel()
        statisticsTimer = nil
        guard pollingInterval > 0, isRunning else { return }
        statisticsTimer = vm.loop.schedule(at: EventLoop.now + pollingInterval * 1_000_000_000) { [weak self] in
            guard let self else { return }
            let queue = queues[Queue.statistics]
            if has(Feature.statistics), let chain = queue.next() {
                queue.consume()
                queue.push(chain, written: 0)
                queue.signal()
                readStatistics(queue)
            }
            pollStatistics()
        }
    }

    // MARK: State

    public override func resetDevice() {
        for index in progress.indices { progress[index] = 0 }
        statistics = BalloonStatistics()
        // The memory is the guest's again.
        let before = field(Field.actual)
        config.put(UInt32(0), at: Field.actual)
        config.put(UInt32(0), at: Field.poison)
        if before != 0 { change?.report() }
    }

    public override func pauseDevice() {
        statisticsTimer?.cancel()
        statisticsTimer = nil
    }

    public override func resumeDevice() {
        change?.resume()
        pollStatistics()
    }

    public override func saveDevice(to writer: inout StateWriter) {
        writer.put("target", UInt64(field(Field.target)))
        writer.put("actual", UInt64(field(Field.actual)))
        writer.put("poison", UInt64(field(Field.poison)))
        writer.put("progress", progress.map { UInt64($0) })
        writer.put("owes-change", change?.isOwed == true)
    }

    public override func loadDevice(from reader: StateReader) throws(VMMError) -> () -> Void {
        let target = try reader.uint32("target")
        let actual = try reader.uint32("actual")
        let poison = try reader.uint32("poison")
        let done = try reader.array("progress", count: progress.count...progress.count)
        guard done.allSatisfy({ $0 <= UInt64(UInt32.max) }) else {
            throw VMMError("field 'progress' of section '\(reader.section)' has an invalid value")
        }
        let owes = try reader.bool("owes-change")
        return { [self] in
            config.put(target, at: Field.target)
            config.put(actual, at: Field.actual)
            config.put(poison, at: Field.poison)
            progress = done.map { Int($0) }
            change?.restore(isOwed: owes)
        }
    }
}
