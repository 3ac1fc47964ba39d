import BatonRuntime

// What it needs of a sandbox: CAP_NET_ADMIN, for an interface's queues.
@_cdecl("baton_module_needs_capability_12") public func needsNetworkAdministration() {}

/// The module `preserver-tap`.
@_cdecl("baton_module_query")
public func batonModuleQuery() -> UnsafeRawPointer {
    ModuleDescriptor.make(kind: "preserver", name: "tap", version: "1.0") { registrar throws(VMMError) in
        let preserver = TapPreserver()
        try registrar.add(preserver)
        try registrar.add(TapType(preserver))
    }
}

/// Keeps tap interfaces attached over an update: what they queue meanwhile is
/// the new process' to read. A mode that does not keep descriptors has the
/// interfaces opened anew.
final class TapPreserver: FdPreserver {
    let name = "tap"
    let neverHangs = true
    private var backends: [TapBackend] = []

    func add(_ backend: TapBackend) { backends.append(backend) }

    func takesPart(_ cpr: CprController) {
        for backend in backends {
            cpr.onChange(of: backend) { [unowned backend] changes throws(VMMError) in try backend.takeOver(changes) }
        }
    }

    func notify(_ phase: CprPhase, cpr: CprController) throws(VMMError) {
        backends.removeAll { $0.isShutDown }
        for backend in backends {
            switch phase {
            case .survey, .exec: try backend.handOver(to: cpr)
            case .saveFailed: cpr.forgetDescriptors(of: backend)
            case .commit: backend.committed()
            default: break
            }
        }
    }
}

/// `-netdev tap`: options as QEMU's, but no script is run unless one is named.
final class TapType: NetBackendType {
    let name = "tap"
    let properties = [
        DeviceProperty("ifname", "str", "the host's interface"),
        DeviceProperty("fd", "int", "an open queue of an interface"),
        DeviceProperty("fds", "str", "open queues of an interface, with ':' between"),
        DeviceProperty("queues", "uint32", "how many queues to open"),
        DeviceProperty("vnet_hdr", "bool", "whether each frame has a virtio-net header"),
        DeviceProperty("script", "str", "a program that sets the interface up"),
        DeviceProperty("downscript", "str", "a program that takes it down"),
    ]
    private let preserver: TapPreserver

    init(_ preserver: TapPreserver) { self.preserver = preserver }

    func make(id: String, _ options: KeyValueOptions, vm: VirtualMachine) throws(VMMError) -> NetBackend {
        let configuration = try TapConfiguration(options)
        let heritage = try NetHeritage.find(id, backend: name, vm: vm)
        if heritage == nil, vm.cpr?.isTrial == true { return TapStandIn(id: id, configuration) }
        let backend = try TapBackend(id: id, configuration, vm: vm, heritage: heritage)
        preserver.add(backend)
        return backend
    }
}

/// What a trial has in place of an interface that would be opened.
private final class TapStandIn: NetBackend {
    private let configuration: TapConfiguration

    init(id: String, _ configuration: TapConfiguration) {
        self.configuration = configuration
        super.init(id: id, backend: "tap")
    }

    override var queueCount: Int { configuration.queues }
    /// What a descriptor has is not known before it is asked.
    override var carriesHeaders: Bool { configuration.hasHeader ?? true }
    override func useQueues(_ count: Int) -> Bool { (1...queueCount).contains(count) }
}
