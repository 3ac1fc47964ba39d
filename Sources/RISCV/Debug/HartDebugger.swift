import BatonRuntime

/// The harts as gdb has them: points, steps and registers.
///
/// The interpreter knows nothing of it. While a debugger has points, the pages with breakpoints are never in the fetch
/// entries of a TLB, so that each of their instructions is looked up by `fillFetch`, and those with watchpoints never
/// in the data entries. A hart that steps has no fetch entry at all. Without a debugger neither is asked for
/// (`HartState.isDebugged`), and the loop is the same in both.
final class HartDebugger: DebugTarget {
    private unowned let accelerator: SoftwareAccelerator
    private let vm: VirtualMachine

    private var breakpoints: Set<UInt64> = []
    /// The pages that have some.
    private var breakpointPages: Set<UInt64> = []
    private var watchpoints: [DebugPoint] = []
    private var actions: [Int: DebugAction] = [:]
    private var masksInterrupts = false
    private(set) var stop: DebugStop?

    /// Bytes of memory that a watchpoint may cover.
    private static let longestWatchpoint: UInt64 = 1 << 20

    init(accelerator: SoftwareAccelerator, vm: VirtualMachine) {
        (self.accelerator, self.vm) = (accelerator, vm)
    }

    // MARK: Points

    func setPoints(_ points: Set<DebugPoint>) {
        breakpoints = []
        watchpoints = []
        for point in points {
            switch point.kind {
            case .softwareBreakpoint, .hardwareBreakpoint: breakpoints.insert(point.address)
            case .writeWatchpoint, .readWatchpoint, .accessWatchpoint:
                var point = point
                point.length = min(max(1, point.length), Self.longestWatchpoint)
                watchpoints.append(point)
            }
        }
        breakpointPages = Set(breakpoints.map { $0 & pageMask })
        updateHarts()
    }

    func setActions(_ actions: [Int: DebugAction], withoutInterrupts: Bool) {
        self.actions = actions.filter { $0.value != .run }
        masksInterrupts = withoutInterrupts
        stop = nil
        updateHarts()
    }

    /// Has the harts ask for what there is, and forget where they did without.
    private func updateHarts() {
        for hart in accelerator.harts {
            let steps = actions[hart.index] == .step
            let isDebugged = steps || !breakpoints.isEmpty || !watchpoints.isEmpty
            // With neither before nor now there is nothing to forget.
            guard isDebugged || hart.state.pointee.isDebugged else { continue }
            hart.state.pointee.isDebugged = isDebugged
            hart.state.pointee.steps = steps
            hart.state.flushTLB()
        }
    }

    // MARK: Asked by harts

    func action(of hart: Hart) -> DebugAction { actions.isEmpty ? .run : actions[hart.index] ?? .run }

    /// Whether each instruction of an address' page is to be looked up by itself.
    func isApart(_ address: UInt64) -> Bool { breakpointPages.contains(address & pageMask) }

    func hasBreakpoint(_ address: UInt64) -> Bool { breakpoints.contains(address) }

    /// Whether any byte of an address' page is watched.
    func isWatched(page address: UInt64) -> Bool {
        let page = address & pageMask
        return watchpoints.contains { $0.overlaps(page, length: 4096) }
    }

    func noteAccess(_ hart: Hart, _ address: UInt64, size: Int, isStore: Bool) {
        let unwanted: DebugPoint.Kind = isStore ? .readWatchpoint : .writeWatchpoint
        let length = UInt64(size)
        guard let point = watchpoints.first(where: { $0.kind != unwanted && $0.overlaps(address, length: length) })
        else { return }
        let touched = address &- point.address < point.length ? address : point.address
        note(DebugStop(cpu: hart.index, watchpoint: (point, touched)))
    }

    func note(_ stop: DebugStop) {
        // Of several in a slice the first one counts.
        if self.stop == nil { self.stop = stop }
        vm.requestStop(.debug)
    }

    /// Carries out one instruction of a hart that steps, and asks for the stop.
    /// - Returns: instructions that were carried out.
    func step(_ hart: Hart) -> Int64 {
        guard stop == nil, hart.runOne(takesInterrupts: !masksInterrupts) else { return 0 }
        note(DebugStop(cpu: hart.index))
        return 1
    }

    // MARK: Registers and memory

    let generalRegisters = HartDescription.cpuRegisters.count
    var programCounter: Int { HartDescription.programCounter }
    private(set) lazy var descriptions = HartDescription.documents(of: accelerator.harts[0])

    func register(_ number: Int, ofCPU cpu: Int) -> [UInt8]? {
        guard accelerator.harts.indices.contains(cpu) else { return nil }
        return accelerator.harts[cpu].debugRegister(number).map { value in
            (0..<8).map { UInt8(truncatingIfNeeded: value >> UInt64($0 * 8)) }
        }
    }

    func setRegister(_ number: Int, ofCPU cpu: Int, _ bytes: [UInt8]) -> Bool {
        guard accelerator.harts.indices.contains(cpu), bytes.count == 8 else { return false }
        let value = bytes.reversed().reduce(0 as UInt64) { $0 << 8 | UInt64($1) }
        return accelerator.harts[cpu].setDebugRegister(number, value)
    }

    func physicalAddress(_ address: UInt64, ofCPU cpu: Int) -> UInt64? {
        guard accelerator.harts.indices.contains(cpu) else { return nil }
        return accelerator.harts[cpu].state.translateForDebugger(address)
    }
}

extension DebugPoint {
    /// Whether a range of addresses has one of this point's bytes.
    fileprivate func overlaps(_ start: UInt64, length other: UInt64) -> Bool {
        start &- address < length || address &- start < other
    }
}
