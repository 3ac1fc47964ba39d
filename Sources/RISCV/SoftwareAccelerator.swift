import BatonRuntime
import Glibc
import InstructionSets

/// Runs harts by interpretation, all on the calling thread, in turns.
public final class SoftwareAccelerator: RISCVAccelerator {
    public static let maximumHarts = 16

    /// As QEMU's users know it.
    public let name = "tcg"
    public private(set) var harts: [Hart] = []
    /// The SBI of `-bios default`; nil when firmware runs in M-mode.
    public private(set) var sbi: BuiltinSBI?

    private let vm: VirtualMachine
    let cache: UnsafeMutablePointer<CodeCache>
    private var listener: Listener?
    private var memoryReady = false
    private var yieldRequested = false
    /// What the last slices ran at, in instructions a second.
    private var speed: Int64 = 100_000_000

    /// The length of a slice in nanoseconds.
    static let sliceLength: Int64 = 200_000
    /// What a slice may take when its instructions are slower than those before.
    private static let longestSlice: Int64 = 2_000_000
    /// When the current slice is too long.
    private var sliceEnd = Int64.max

    public init(vm: VirtualMachine) throws(VMMError) {
        vm.clock.makesUpInSteps = true
        self.vm = vm
        cache = try CodeCache.allocate()
        vm.metrics.add { [weak self] in self.map { [$0.instructions] } ?? [] }
    }

    private var instructions: MetricFamily {
        var family = MetricFamily(
            "baton_cpu_instructions_total", .counter, help: "Instructions that a hart has retired since its reset.")
        for (index, hart) in harts.enumerated() {
            family.add(Double(hart.retiredInstructions), [("cpu", String(index))])
        }
        return family
    }

    /// With harts, for who knows their number already.
    public convenience init(
        vm: VirtualMachine, hartCount: Int, processor: RISCVProcessor = .standard
    ) throws(VMMError) {
        try self.init(vm: vm)
        try makeHarts(hartCount, processor)
    }

    /// `-cpu`: what the harts have.
    public internal(set) var processor = RISCVProcessor.standard {
        didSet { cache.pointee.setExtensions(processor.extensions) }
    }
    /// What the first hart's state was saved with, while state is looked at: the others' must have been too.
    var loadedExtensions: RISCVExtensions?

    public var maximumHarts: Int { SoftwareAccelerator.maximumHarts }
    public var riscvHarts: [any RISCVHart] { harts }

    /// Makes the harts. The board adds each to the VM (`vm.add(hart)`), sets
    /// its reset vector and wires its interrupts.
    /// - Parameters:
    ///   - hartCount: 1 to `maximumHarts`.
    ///   - processor: what each of them has.
    /// - Throws: an error that says how many harts are supported.
    public func makeHarts(_ hartCount: Int, _ processor: RISCVProcessor) throws(VMMError) {
        precondition(harts.isEmpty)
        self.processor = processor
        guard 1...SoftwareAccelerator.maximumHarts ~= hartCount else {
            throw VMMError(
                "Invalid SMP CPUs \(hartCount). The max CPUs supported by accelerator '\(name)' is "
                    + "\(SoftwareAccelerator.maximumHarts)")
        }
        for index in 0..<hartCount {
            let hart = Hart(index: index, accelerator: self, vm: vm, cache: cache)
            harts.append(hart)
            cache.pointee.harts[index] = hart.state
        }
        cache.pointee.hartCount = hartCount
        let listener = Listener(cache: cache, states: harts.map(\.state))
        self.listener = listener
        vm.addressSpace.add(listener)
    }

    deinit {
        if let listener { vm.addressSpace.remove(listener) }
        CodeCache.deallocate(cache)
    }

    /// Makes the VMM answer ecalls from S-mode itself (`-bios default`). Reset
    /// then leaves every hart but the first stopped, until the guest starts it.
    public func enableBuiltinSBI(console: any SBIConsole) { enableBuiltinSBI().console = console }

    @discardableResult
    public func enableBuiltinSBI() -> BuiltinSBI {
        let sbi = sbi ?? BuiltinSBI(accelerator: self, vm: vm)
        self.sbi = sbi
        return sbi
    }

    /// Looks at the board's RAM, once all of it is mapped; boards call this.
    /// - Throws: an error when there is no memory for the map of decoded code.
    public func prepareMemory() throws(VMMError) {
        guard !memoryReady else { return }
        try cache.pointee.adopt(vm.addressSpace)
        memoryReady = true
    }

    /// Makes sure of `prepareMemory` where a board has not called it.
    func requireMemory() {
        if memoryReady { return }
        do throws(VMMError) { try prepareMemory() } catch { fatalError("the board did not prepare memory: \(error)") }
    }

    /// Tells the harts of changes to memory.
    private final class Listener: MemoryListener {
        private let cache: UnsafeMutablePointer<CodeCache>
        private let states: [HartPointer]

        init(cache: UnsafeMutablePointer<CodeCache>, states: [HartPointer]) {
            (self.cache, self.states) = (cache, states)
        }

        func externalWrite(_ address: UInt64, length: UInt64) { cache.pointee.externalWrite(address, length) }
        func foreignWritersExpected() { cache.pointee.expectForeignWriters() }
        func deviceMemoryChanged() { for state in states { state.flushTLB() } }
    }

    // MARK: Accelerator

    public func runSlice() -> SliceResult {
        requireMemory()
        yieldRequested = false
        let start = EventLoop.now
        sliceEnd = start + SoftwareAccelerator.longestSlice
        var ran: Int64 = 0
        var limit = SoftwareAccelerator.sliceLength
        if let deadline = earliestDeadline { limit = min(limit, max(1_000, deadline - start)) }
        let count = max(500, limit &* (speed / 1_000_000) / 1_000 / Int64(runnableHarts))
        for hart in harts where !yieldRequested {
            switch debugger.action(of: hart) {
            case .run: ran += hart.run(count)
            case .step: ran += debugger.step(hart)
            case .stand: break
            }
        }
        let elapsed = EventLoop.now - start
        if ran > 10_000 && elapsed > 10_000 {
            speed = min(max((speed * 7 + ran * 1_000_000_000 / elapsed) / 8, 1_000_000), 4_000_000_000)
        }
        if yieldRequested || harts.contains(where: { !$0.isIdle && debugger.action(of: $0) != .stand }) { return .busy }
        return .idle(until: earliestDeadline)
    }

    public func yield() {
        yieldRequested = true
        for hart in harts { hart.state.leaveLoop() }
    }

    var shouldYield: Bool { yieldRequested }

    /// Ends a slice whose time is over; asked after slow work.
    func endLateSlice() { if EventLoop.now >= sliceEnd { yield() } }

    private var runnableHarts: Int { max(1, harts.count { !$0.isHalted }) }

    /// Host time of the first timer of a hart that is not stopped.
    private var earliestDeadline: Int64? {
        var result: Int64?
        for hart in harts where hart.state.pointee.hsm != .stopped {
            guard let deadline = hart.nextDeadline else { continue }
            let host = vm.clock.hostTime(of: deadline)
            result = min(result ?? host, host)
        }
        return result
    }

    // MARK: Monitor

    public var debugTarget: (any DebugTarget)? { debugger }
    private(set) lazy var debugger = HartDebugger(accelerator: self, vm: vm)

    public var cpus: [CPUInfo] {
        harts.map { hart in
            CPUInfo(
                index: hart.index, qomPath: "/machine/soc0/harts[\(hart.index)]", threadID: getpid(),
                target: "riscv64", halted: hart.isHalted, programCounter: hart.programCounter)
        }
    }

    public func registers(ofCPU index: Int) -> String {
        harts.indices.contains(index) ? harts[index].registersText : ""
    }
}
