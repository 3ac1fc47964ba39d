import BatonBase
import BatonMachine

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
    /// The BARs in this window, by their addresses, of which none overlap.
    private var mapped: [Mapped] = []
    private var last = 0

    private struct Mapped {
        let start: UInt64
        let end: UInt64
        let bar: PCIBar
    }

    public init(name: String, isIO: Bool, start: UInt64, busStart: UInt64, size: UInt64) {
        self.name = name
        self.isIO = isIO
        self.start = start
        self.busStart = busStart
        self.size = size
    }

    /// The number of BARs that begin at or below an address.
    private func count(upTo address: UInt64) -> Int {
        var (low, high) = (0, mapped.count)
        while low < high {
            let middle = (low + high) / 2
            if mapped[middle].start <= address { low = middle + 1 } else { high = middle }
        }
        return low
    }

    fileprivate func isFree(_ start: UInt64, _ end: UInt64) -> Bool {
        let below = count(upTo: start)
        return (below == 0 || mapped[below - 1].end <= start) && (below == mapped.count || mapped[below].start >= end)
    }

    /// Adds a BAR where it is free.
    fileprivate func insert(_ bar: PCIBar, at start: UInt64) {
        mapped.insert(Mapped(start: start, end: start + bar.size, bar: bar), at: count(upTo: start))
    }

    fileprivate func remove(at start: UInt64) {
        let below = count(upTo: start)
        if below > 0, mapped[below - 1].start == start { mapped.remove(at: below - 1) }
    }

    fileprivate func removeAll() { mapped = [] }

    private func bar(_ offset: UInt64, _ width: Int) -> (PCIBar, UInt64)? {
        let address = start &+ offset
        if last < mapped.count, let found = check(mapped[last], address, width) { return found }
        let below = count(upTo: address)
        guard below > 0, let found = check(mapped[below - 1], address, width) else { return nil }
        last = below - 1
        return found
    }

    private func check(_ entry: Mapped, _ address: UInt64, _ width: Int) -> (PCIBar, UInt64)? {
        guard address >= entry.start, address < entry.end, entry.end - address >= UInt64(width) else { return nil }
        return (entry.bar, address - entry.start)
    }

    public func accepts(offset: UInt64, width: Int) -> Bool {
        guard let (bar, offset) = bar(offset, width) else { return true }
        return bar.accepts(offset, width: width)
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
    /// A BAR is not there because another one is.
    private var hasConflicts = false

    /// Where a BAR is to be: a window, and a guest-physical address in it.
    private typealias Place = (window: Int, address: UInt64)

    public init(windows: [PCIWindow], space: AddressSpace) {
        self.windows = windows
        self.space = space
    }

    /// A function's BARs have other addresses, or are enabled or disabled: maps
    /// what changes by that, and tells the functions.
    /// - Parameter functions: every function of the bus, in order.
    public func update(_ function: PCIFunction, of functions: [PCIFunction]) {
        // A function that is told may write to its configuration space.
        isStale = true
        guard !isUpdating else { return }
        isUpdating = true
        defer { isUpdating = false }
        isStale = false
        if !hasConflicts, updateAlone(function), !isStale { return }
        repeat {
            isStale = false
            updateAll(functions)
        } while isStale
    }

    /// Moves the BARs of a function when those of others do not matter: where
    /// a machine has many, each costs the same.
    /// - Returns: false when they do.
    private func updateAlone(_ function: PCIFunction) -> Bool {
        var moved: [(bar: PCIBar, place: Place?)] = []
        for bar in function.bars {
            let place = place(of: bar, function)
            if place?.address != bar.address { moved.append((bar, place)) }
        }
        guard !moved.isEmpty else { return true }
        // If others matter after all, `updateAll` fills the windows anew.
        for (bar, _) in moved {
            if let address = bar.address { for window in windows { window.remove(at: address) } }
        }
        for (bar, place) in moved {
            guard let place else { continue }
            guard windows[place.window].isFree(place.address, place.address + bar.size) else { return false }
            windows[place.window].insert(bar, at: place.address)
        }
        for (bar, _) in moved {
            unmap(bar)
            function.barUnmapped(bar)
        }
        for (bar, place) in moved { if let place { map(bar, at: place.address) } }
        for (bar, _) in moved { function.barMoved(bar) }
        return true
    }

    /// Looks at every BAR anew.
    private func updateAll(_ functions: [PCIFunction]) {
        hasConflicts = false
        for window in windows { window.removeAll() }
        var accepted: [(function: PCIFunction, bar: PCIBar, address: UInt64)] = []
        var moved: [(PCIFunction, PCIBar)] = []
        for function in functions {
            for bar in function.bars {
                var place = place(of: bar, function)
                if let (window, address) = place {
                    let end = address + bar.size
                    if windows[window].isFree(address, end) {
                        windows[window].insert(bar, at: address)
                        accepted.append((function, bar, address))
                    } else {
                        let other = accepted.first { $0.address < end && address < $0.address + $0.bar.size }
                        Log.guestError(
                            "\(function.stateName): BAR \(bar.index) at \(Hex(address)) overlaps BAR "
                                + (other.map { "\($0.bar.index) of \($0.function.stateName)" } ?? "of another"))
                        hasConflicts = true
                        place = nil
                    }
                }
                guard place?.address != bar.address else { continue }
                unmap(bar)
                function.barUnmapped(bar)
                moved.append((function, bar))
            }
        }
        for (_, bar, address) in accepted where bar.address == nil { map(bar, at: address) }
        for (function, bar) in moved { function.barMoved(bar) }
    }

    private func unmap(_ bar: PCIBar) {
        for start in bar.mappedMemory { space.unmapMemory(at: start) }
        bar.mappedMemory = []
        bar.address = nil
    }

    private func map(_ bar: PCIBar, at address: UInt64) {
        bar.address = address
        for pages in bar.memoryPages {
            let start = address + pages.offset
            space.mapMemory(pages.host, at: start, size: pages.size, readOnly: pages.readOnly)
            bar.mappedMemory.append(start)
        }
    }

    /// Where the guest wants a BAR; nil when it is off, or in no window.
    private func place(of bar: PCIBar, _ function: PCIFunction) -> Place? {
        guard let wanted = function.requestedAddress(bar) else { return nil }
        for (index, window) in windows.enumerated() where window.isIO == (bar.space == .io) {
            guard wanted >= window.busStart, window.size >= bar.size, wanted - window.busStart <= window.size - bar.size
            else { continue }
            guard function.bus?.isReached(wanted, size: bar.size, isIO: window.isIO) == true else {
                Log.guestError(
                    "\(function.stateName): no bridge forwards accesses to BAR \(bar.index) at \(Hex(wanted))")
                return nil
            }
            return (index, window.start + (wanted - window.busStart))
        }
        Log.guestError("\(function.stateName): BAR \(bar.index) at \(Hex(wanted)) is in no window")
        return nil
    }
}
