import BatonBase

/// What a slice of guest execution ended with.
public enum SliceResult {
    /// The guest has more to do at once.
    case busy
    /// Every CPU waits for an interrupt. The earliest timer is due at this host
    /// CLOCK_MONOTONIC in nanoseconds; nil when there is none.
    case idle(until: Int64?)
}

/// A CPU as the monitor sees it.
public struct CPUInfo {
    public var index: Int
    public var qomPath: String
    public var threadID: Int32
    public var target: String
    public var halted: Bool
    public var programCounter: UInt64
    public init(index: Int, qomPath: String, threadID: Int32, target: String, halted: Bool, programCounter: UInt64) {
        self.index = index
        self.qomPath = qomPath
        self.threadID = threadID
        self.target = target
        self.halted = halted
        self.programCounter = programCounter
    }
}

/// Runs the guest's CPUs. Boards make CPUs through their accelerator, which knows no board; the VM runs them.
///
/// An accelerator runs CPUs in one of two ways: in slices on the main thread (`runSlice`), or on threads of its own
/// (`hasThreads`). Everything is called with the VM lock held (`VirtualMachine.lock`).
///
/// What a board needs beyond this is in a protocol of its instruction set, which refines this one.
public protocol Accelerator: AnyObject {
    /// As in `-accel`.
    var name: String { get }
    /// For `query-cpus-fast`.
    var cpus: [CPUInfo] { get }
    /// Registers of one CPU as text, for `info registers`.
    func registers(ofCPU index: Int) -> String
    /// What a debugger of the guest works on; nil where the accelerator has no such thing.
    var debugTarget: (any DebugTarget)? { get }

    // MARK: CPUs on the main thread

    /// Runs the CPUs on the calling thread for about a fifth of a millisecond,
    /// or less when a device asks for the loop (`yield`) or a timer is due.
    /// Not called for an accelerator with threads.
    func runSlice() -> SliceResult
    /// Makes the current `runSlice` return soon; called from device code inside it. With threads: has the main
    /// thread look at what was asked for.
    func yield()

    // MARK: CPUs on threads

    /// Whether CPUs run on threads of their own.
    var hasThreads: Bool { get }
    /// Makes the threads, which wait, before there is a state to run: `makeThreads` need not do that while a guest
    /// waits for its load. What fails here fails there again, and is said then.
    func prepareThreads()
    /// Makes the threads, which wait. Everything that can fail about running CPUs fails here.
    func makeThreads() throws(VMMError)
    /// Lets the CPUs run. Cannot fail; `makeThreads` came before.
    func resumeCPUs()
    /// Stops the CPUs between two instructions, and returns when none runs guest code or device code. What they have
    /// in hand is finished: their state may be read. Lets go of the VM lock while it waits.
    func pauseCPUs()
    /// Joins the threads, which wait: nothing but the main thread is left of the process.
    func endThreads()
    /// What keeps the CPUs from running: a state that the kernel did not take, since a reset or load began; or did not
    /// give, in a save. Looked at after each of these.
    var failure: VMMError? { get }
    /// Forgets a failure: nothing was to be set, only read.
    func forgetFailure()

    /// Gives each CPU a non-maskable interrupt. Main thread.
    /// - Returns: false when the CPUs have none.
    func injectNMI() -> Bool

    // MARK: Events without a hop through the loop

    /// Whether `add` may be worth a try.
    var takesDoorbells: Bool { get }
    /// Has writes of the guest counted on an eventfd, in place of a call of the device.
    /// - Returns: false when the accelerator cannot do that: the device is called as ever.
    func add(_ doorbell: Doorbell) -> Bool
    func remove(_ doorbell: Doorbell)
    /// Makes a route for messages: what is counted on an eventfd is an interrupt. Nil when there are none.
    /// - Parameter event: an eventfd. Borrowed until the route is removed.
    func makeMessageRoute(event: Int32) -> (any MessageRoute)?

    // MARK: Devices of the host's

    /// Says that a device of the host's does DMA to guest memory: CPUs' caches may have to be kept for it.
    /// - Parameter file: the open device, or the group that it is in. Borrowed. It may be said again.
    func addDMA(file: Int32)
}

extension Accelerator {
    public var debugTarget: (any DebugTarget)? { nil }
    public var hasThreads: Bool { false }
    public func prepareThreads() {}
    public func makeThreads() throws(VMMError) {}
    public func resumeCPUs() {}
    public func pauseCPUs() {}
    public func endThreads() {}
    public var failure: VMMError? { nil }
    public func forgetFailure() {}
    public func injectNMI() -> Bool { false }
    public var takesDoorbells: Bool { false }
    public func add(_ doorbell: Doorbell) -> Bool { false }
    public func remove(_ doorbell: Doorbell) {}
    public func makeMessageRoute(event: Int32) -> (any MessageRoute)? { nil }
    public func addDMA(file: Int32) {}
}

/// A register to which writes are events: Linux's ioeventfd.
public struct Doorbell: Equatable {
    /// Whether it is in the space of ports, and not in that of memory.
    public var isPort: Bool
    /// The first address.
    public var address: UInt64
    /// Bytes of an access that counts: 1, 2, 4 or 8; 0 for any, which goes without a value only.
    public var width: Int
    /// What must be written; nil for anything.
    public var value: UInt64?
    /// An eventfd. Borrowed, until the doorbell is removed.
    public var fd: Int32

    public init(isPort: Bool = false, address: UInt64, width: Int, value: UInt64?, fd: Int32) {
        (self.isPort, self.address, self.width, self.value, self.fd) = (isPort, address, width, value, fd)
    }
}

/// A message signalled interrupt that an eventfd sends: Linux's irqfd.
///
/// An eventfd is an interrupt of one VM at a time: a VMM that is about to be replaced lets go of its eventfds (`mask`)
/// before state is saved, and the next one can take hold of the same ones.
public protocol MessageRoute: AnyObject {
    /// Has events sent as this message from now on, with those that wait in the eventfd.
    /// - Returns: false when the accelerator does not take the message there: events wait, as after `mask`.
    func set(address: UInt64, data: UInt32) -> Bool
    /// From here on events wait in the eventfd, as they do until the first `set`. Those before have been sent.
    func mask()
    /// Frees the route, and leaves the eventfd as `mask` does.
    func remove()
}

/// Makes an accelerator: what a module of kind `accel` provides.
public protocol AcceleratorType: AnyObject {
    /// As in `-accel`; the module is `accel-NAME`.
    var name: String { get }
    /// A line for `-accel help`.
    var summary: String { get }
    /// The instruction sets of its CPUs, as in `MachineType.architecture`: a machine of another is not tried on it.
    var architectures: [String] { get }
    /// What `-accel NAME,...` takes besides.
    var properties: [DeviceProperty] { get }
    /// What may follow the name of a CPU model in `-cpu`, where the machine does not know it.
    func cpuProperties(of model: String) -> [DeviceProperty]
    /// - Parameters:
    ///   - options: those of `-accel`, of which it reads its own.
    /// - Throws: why this host has no such accelerator; another may be tried then.
    func make(vm: VirtualMachine, options: KeyValueOptions) throws(VMMError) -> any Accelerator
}

extension AcceleratorType {
    public func cpuProperties(of model: String) -> [DeviceProperty] { [] }
}

/// What the guest can ask of the machine it runs on: by a call of its firmware, a device's register …
public protocol GuestRequests: AnyObject {
    /// The guest powers the machine off. `status` is the exit status that a
    /// test finisher asks for, 0 for a plain power-off.
    func guestRequestedShutdown(status: Int32)
    func guestRequestedReset()
}
