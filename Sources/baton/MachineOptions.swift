import BatonRuntime

/// What `-machine`, `-accel`, `-cpu` and `-smp` say.
struct MachineOptions {
    var type: any MachineType
    var memoryBackend: String?
    var dumpDTB: String?
    var mergeMemory = true
    var dumpGuestCore = true
    /// Memory that no option names is shared, and so outlives an exec.
    var sharesAuxiliaryRAM = false
    var topology = Topology()
    var cpu: String?
    /// Files, and the kernel's command line, that `-machine` names; their own options come first.
    private(set) var kernel: String?
    private(set) var initrd: String?
    private(set) var commandLine: String?
    private(set) var deviceTree: String?
    private(set) var firmware: String?
    /// `-machine`, without what all machines take: what is left is the machine's own.
    private(set) var options: [KeyValueOptions] = []
    /// What to try in turn, with the options of each.
    private var accelerators: [(name: String, options: KeyValueOptions)] = []

    static let defaultMachine = "virt"

    init(_ invocation: Invocation, loader: ModuleLoader) throws(VMMError) {
        var name = MachineOptions.defaultMachine
        var accelerator: String?
        try invocation.each("machine") { text throws(VMMError) in
            name = try KeyValueOptions(text, impliedKey: "type").string("type") ?? name
        }
        type = try loader.machineType(name)
        try invocation.each("machine") { text throws(VMMError) in
            let options = try KeyValueOptions(text, impliedKey: "type")
            _ = try options.string("type")
            memoryBackend = try options.string("memory-backend") ?? memoryBackend
            dumpDTB = try options.string("dumpdtb") ?? dumpDTB
            mergeMemory = try options.bool("mem-merge") ?? mergeMemory
            dumpGuestCore = try options.bool("dump-guest-core") ?? dumpGuestCore
            sharesAuxiliaryRAM = try options.bool("aux-ram-share") ?? sharesAuxiliaryRAM
            accelerator = try options.string("accel") ?? accelerator
            _ = try options.enumeration("usb", ["off"])
            _ = try options.enumeration("kernel-irqchip", ["on"])
            kernel = try options.string("kernel") ?? kernel
            initrd = try options.string("initrd") ?? initrd
            commandLine = try options.string("append") ?? commandLine
            deviceTree = try options.string("dtb") ?? deviceTree
            firmware = try options.string("firmware") ?? firmware
            self.options.append(options)
        }
        cpu = invocation.last("cpu")
        try invocation.each("smp") { text throws(VMMError) in topology = try Topology(text, of: type) }
        // As in QEMU: of several -accel each is tried in turn.
        try invocation.each("accel") { text throws(VMMError) in
            let options = try KeyValueOptions(text, impliedKey: "accel")
            let list = try options.requiredString("accel")
            _ = try options.string("thread")
            for name in list.split(separator: ":") { accelerators.append((String(name), options)) }
            if list.isEmpty { throw VMMError("invalid accelerator \(list)") }
        }
        if invocation.has("enable-kvm") { accelerators.append(("kvm", try KeyValueOptions(""))) }
        if accelerators.isEmpty {
            let names = accelerator.map { $0.split(separator: ":").map(String.init) } ?? type.accelerators
            for name in names { accelerators.append((name, try KeyValueOptions(""))) }
        } else if accelerator != nil {
            throw VMMError("The -accel and \"-machine accel=\" options are incompatible")
        }
    }

    /// Makes the first accelerator that this host has, of those that are asked for.
    /// - Throws: an error when there is none.
    func makeAccelerator(_ vm: VirtualMachine, loader: ModuleLoader) throws(VMMError) -> any Accelerator {
        var failures: [VMMError] = []
        for (name, options) in accelerators {
            do throws(VMMError) {
                let kind = try loader.acceleratorType(name)
                guard kind.architectures.contains(type.architecture) else {
                    throw VMMError(
                        "machine '\(type.name)' cannot run on accelerator '\(name)', which has no "
                            + "\(type.architecture) CPUs",
                        hint: "Use -accel \(type.accelerators.joined(separator: ":")).")
                }
                let accelerator = try kind.make(vm: vm, options: options)
                try options.finish()
                if !failures.isEmpty {
                    for failure in failures { Report.warning(failure.message) }
                    Report.warning("falling back to \(name)")
                }
                return accelerator
            } catch {
                failures.append(error)
            }
        }
        guard var error = failures.popLast() else { throw VMMError("No accelerator selected") }
        if let first = failures.first { error = first }
        throw error
    }

    /// Refuses what neither all machines nor this one take.
    func finish() throws(VMMError) {
        for each in options {
            guard let unknown = each.untakenKeys.first else { continue }
            throw VMMError(
                "Property '\(type.name)-machine.\(unknown)' not found",
                hint: "Use -machine \(type.name),help to list the properties.")
        }
    }

    /// `-smp`
    struct Topology {
        var sockets = 1
        var cores = 1
        var threads = 1
        var count: Int { sockets * cores * threads }

        init() {}

        /// - Throws: QEMU's errors.
        init(_ text: String, of machine: any MachineType) throws(VMMError) {
            let options = try KeyValueOptions(text, impliedKey: "cpus")
            let limit = UInt64(1 << 20)
            func number(_ key: String) throws(VMMError) -> Int? {
                try options.number(key, in: 1...limit).map { Int($0) }
            }
            let cpus = try number("cpus")
            let (sockets, cores, threads) = (try number("sockets"), try number("cores"), try number("threads"))
            // One of each: neither board has more levels.
            for key in ["dies", "clusters", "modules", "books", "drawers"] {
                _ = try options.number(key, in: 1...1)
            }
            let maximum = try number("maxcpus")
            try options.finish()
            // Since QEMU 6.2 cores are preferred over sockets.
            self.sockets = sockets ?? 1
            self.threads = threads ?? 1
            let known = cpus ?? maximum ?? 0
            self.cores = cores ?? max(1, known / (self.sockets * self.threads))
            if sockets == nil, cores != nil { self.sockets = max(1, known / (self.cores * self.threads)) }
            let wanted = cpus ?? maximum ?? count
            guard count == wanted else {
                throw VMMError(
                    "Invalid CPU topology: product of the hierarchy must match maxcpus: sockets (\(self.sockets)) * "
                        + "cores (\(self.cores)) * threads (\(self.threads)) != maxcpus (\(wanted))")
            }
            guard maximum == nil || maximum == wanted else {
                throw VMMError(
                    "Invalid SMP CPUs \(wanted): maxcpus must be the same",
                    hint: "CPUs cannot be plugged later: leave maxcpus= out.")
            }
            guard wanted <= machine.maximumCPUs else {
                throw VMMError(
                    "Invalid SMP CPUs \(wanted). The max CPUs supported by machine '\(machine.name)' is "
                        + "\(machine.maximumCPUs)")
            }
        }
    }
}
