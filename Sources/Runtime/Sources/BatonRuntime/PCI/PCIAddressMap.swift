/// A range of guest-physical addresses through which a host bridge passes
/// accesses to the BARs of its bus.
///
/// A BAR that is not wholly in a window, or that overlaps one of an earlier
/// function, is not there for the guest, wherever it was put.
public final class PCIWindow: MMIODevice {
    public let isIO: Bool
    /// The guest-physical address of the window's start.
    public let start: UInt64
    /// The bus address there.
    public let busStart: UInt64
    public let size: UInt64
    public let name: String
    fileprivate var mapped: [PCIBar] = []
    private var last = 0

    public init(name: String, isIO: Bool, start: UInt64, busStart: UInt64, size: UInt64) {
        self.name = name
        self.isIO = isIO
        self.start = start
        self.busStart = busStart
        self.size = size
    }

    private func bar(_ offset: UInt64, _ width: Int) -> (PCIBar, UInt64)? {
        let address = start &+ offset
        if last < mapped.count, let found = check(mapped[last], address, width) { return found }
        for index in mapped.indices {
            guard let found = check(mapped[index], address, width) else { continue }
            last = index
            return found
        }
        return nil
    }

    private func check(_ bar: PCIBar, _ address: UInt64, _ width: Int) -> (PCIBar, UInt64)? {
        guard let start = bar.address, address >= start, address - start <= bar.size &- UInt64(width),
            bar.size >= UInt64(width)
        else { return nil }
        return (bar, address - start)
    }

    public func mmioRead(offset: UInt64, width: Int) -> UInt64 {
        guard let (bar, offset) = bar(offset, width) else {
            Log.guestError("\(name): read of \(width) bytes at \(Hex(start &+ offset)): nothing there")
            return UInt64.max >> UInt64(64 - 8 * width)
        }
        return bar.read(offset, width: width)
    }

    public func mmioWrite(offset: UInt64, width: Int, value: UInt64) {
        guard let (bar, offset) = bar(offset, width) else {
            return Log.guestError("\(name): write of \(width) bytes at \(Hex(start &+ offset)): nothing there")
        }
        bar.write(offset, width: width, value)
    }
}

/// Keeps the BARs of a bus where the guest has put them.
public final class PCIAddressMap {
    public let windows: [PCIWindow]
    private let space: AddressSpace
    private var isUpdating = false
    private var isStale = false

    public init(windows: [PCIWindow], space: AddressSpace) {
        self.windows = windows
        self.space = space
    }

    /// Looks at every BAR anew: unmaps those that have gone or moved, then maps
    /// the others, and tells the functions.
    public func update(_ functions: [PCIFunction]) {
        // A function that is told may write to its configuration space.
        isStale = true
        guard !isUpdating else { return }
        isUpdating = true
        while isStale {
            isStale = false
            updateOnce(functions)
        }
        isUpdating = false
    }

    private func updateOnce(_ functions: [PCIFunction]) {
        var accepted: [(function: PCIFunction, bar: PCIBar, window: Int, address: UInt64)] = []
        for function in functions {
            for bar in function.bars {
                guard let wanted = function.requestedAddress(bar) else { continue }
                guard let (window, address) = window(for: bar, at: wanted) else {
                    Log.guestError("\(function.stateName): BAR \(bar.index) at \(Hex(wanted)) is in no window")
                    continue
                }
                let end = address + bar.size
                if let other = accepted.first(where: { $0.address < end && address < $0.address + $0.bar.size }) {
                    Log.guestError(
                        "\(function.stateName): BAR \(bar.index) at \(Hex(wanted)) overlaps BAR \(other.bar.index) of "
                            + other.function.stateName)
                    continue
                }
                accepted.append((function, bar, window, address))
            }
        }
        var moved: [(PCIFunction, PCIBar)] = []
        for function in functions {
            for bar in function.bars {
                let address = accepted.first { $0.bar === bar }?.address
                guard address != bar.address else { continue }
                for start in bar.mappedMemory { space.unmapMemory(at: start) }
                bar.mappedMemory = []
                bar.address = nil
                moved.append((function, bar))
            }
        }
        guard !moved.isEmpty else { return }
        for window in windows { window.mapped = [] }
        for entry in accepted {
            windows[entry.window].mapped.append(entry.bar)
            guard entry.bar.address == nil else { continue }
            entry.bar.address = entry.address
            for pages in entry.bar.memoryPages {
                let start = entry.address + pages.offset
                space.mapMemory(pages.host, at: start, size: pages.size, readOnly: pages.readOnly)
                entry.bar.mappedMemory.append(start)
            }
        }
        for (function, bar) in moved { function.barMoved(bar) }
    }

    private func window(for bar: PCIBar, at address: UInt64) -> (Int, UInt64)? {
        for (index, window) in windows.enumerated() where window.isIO == (bar.space == .io) {
            guard address >= window.busStart, window.size >= bar.size,
                address - window.busStart <= window.size - bar.size
            else { continue }
            return (index, window.start + (address - window.busStart))
        }
        return nil
    }
}
