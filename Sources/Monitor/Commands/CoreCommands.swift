import BatonRuntime

/// What the core commands show and the VM itself does not know.
public struct CoreCommandContext {
    /// A machine type, for `query-machines`.
    public struct Machine {
        public var name: String
        public var summary: String
        public var maximumCPUs: Int
        public var defaultCPUType: String
        public var hasACPI: Bool
        public init(name: String, summary: String, maximumCPUs: Int, defaultCPUType: String, hasACPI: Bool) {
            self.name = name
            self.summary = summary
            self.maximumCPUs = maximumCPUs
            self.defaultCPUType = defaultCPUType
            self.hasACPI = hasACPI
        }
    }

    /// The machine types that are known, for `query-machines`.
    public var machines: () -> [Machine]

    public init(machines: @escaping () -> [Machine]) { self.machines = machines }
}

/// Registers the commands and events that every VM has.
/// - Parameter memory: for `query-memdev`, `x-query-ramblock` and their HMP forms.
public func registerCoreCommands(
    vm: VirtualMachine, memory: GuestMemory, context: CoreCommandContext = CoreCommandContext { [] }
) throws(VMMError) {
    try registerIntrospection(vm)
    try registerRunControl(vm)
    try registerMachineQueries(vm, context)
    try registerMemoryQueries(vm, memory)
    try registerNUMAQueries(vm)
    try ExaminePhysical.register(vm)
    try registerBlockQueries(vm)
    try registerBlockStatisticsQueries(vm)
    try registerDescriptorCommands(vm: vm)
    registerMachineMetrics(vm)
    try registerMetricsCommands(vm)
}

extension QMPCommand {
    /// A command without arguments that cannot fail.
    static func query(_ name: String, returns: QMPType, _ answer: @escaping () -> JSON) -> QMPCommand {
        QMPCommand(name, returns: returns) { (_: JSONObject) throws(VMMError) -> JSON in answer() }
    }
}

extension HMPCommand {
    /// `info TOPIC` that cannot fail and takes no arguments.
    static func info(_ topic: String, _ help: String, _ answer: @escaping () -> String) -> HMPCommand {
        HMPCommand("info \(topic)", help: help) { (_: String) throws(VMMError) -> String in answer() }
    }
}

/// What QEMU's `info` commands over QMP return.
let humanReadableText = QMPType.object(name: "HumanReadableText", members: [QMPMember("human-readable-text", .string)])
