import BatonRuntime
import VFIOPCI

/// What of a device crosses an update beside its checkpoint section: the
/// connection, the descriptors of regions and interrupts, and what the server
/// has said, so that nothing need be asked again (and a trial run, which must
/// say nothing, knows the device all the same).
struct VFIOUserHeritage {
    let connection: VFIOUserConnection
    let shape: VFIOShape
    let interrupts: VFIOInheritedInterrupts

    static let prefix = "vfio-user-"
    private static func part(_ server: String) -> String { "vfio-user/\(server)" }

    private enum Descriptor: String {
        case connection, requests, region, interrupt, notice

        func name(_ server: String) -> String { "\(VFIOUserHeritage.prefix)\(rawValue)/\(server)" }
    }

    /// - Returns: nil in a fresh start.
    /// - Throws: an error for a device that the process before did not have.
    static func find(_ name: String, vm: VirtualMachine, timeLimit: Int64) throws(VMMError) -> VFIOUserHeritage? {
        guard let cpr = vm.cpr, let inherited = cpr.inherited else { return nil }
        guard let state = try inherited.part(part(name)) else {
            throw VMMError(
                "the VMM before did not have the device", hint: "Give the new VMM the devices of the old one.")
        }
        return try VFIOUserHeritage(state, name: name, space: vm.addressSpace, cpr: cpr, timeLimit: timeLimit)
    }

    private init(
        _ state: StateReader, name: String, space: AddressSpace, cpr: CprController, timeLimit: Int64
    ) throws(VMMError) {
        let capabilities = VFIOUserCapabilities(
            messageFDs: Int(try state.unsigned("message-fds", in: 1...16)),
            transfer: Int(try state.unsigned("transfer", in: 64...UInt64(VFIOUser.maxTransfer))))
        shape = try VFIOShape(state)
        guard try state.array("ram", count: 0...1024) == VFIOUserRAM(space).numbers else {
            throw VMMError(
                "guest memory is not where the server has it mapped",
                hint: "Give the new VMM the memory options of the old one.")
        }
        interrupts = try VFIOInheritedInterrupts(
            Descriptor.interrupt.name(name), notices: Descriptor.notice.name(name), state, cpr: cpr)
        let isConnected = try state.bool("connected")
        let hasRequests = try state.bool("has-requests")
        let regions = try state.array("region-files", count: 0...16)
        try state.finish()

        func find(_ kind: Descriptor, _ id: Int = 0) throws(VMMError) -> Int32 {
            guard let fd = cpr.fds.find(kind.name(name), id: id) else {
                throw VMMError("the CPR state lacks the descriptor '\(kind.name(name))' id \(id)")
            }
            return fd
        }
        let socket = isConnected ? try find(.connection) : -1
        let requests = hasRequests ? try find(.requests) : -1
        var files: [Int: Int32] = [:]
        for region in regions {
            let index = Int(truncatingIfNeeded: region)
            files[index] = try find(.region, index)
        }
        // Everything is there: it changes hands.
        cpr.fds.delete(Descriptor.connection.name(name))
        cpr.fds.delete(Descriptor.requests.name(name))
        for index in files.keys { cpr.fds.delete(Descriptor.region.name(name), id: index) }
        interrupts.claim(cpr)
        connection = VFIOUserConnection(
            inherited: name, socket: socket, requestSocket: requests, regionFiles: files, capabilities: capabilities,
            space: space, timeLimit: timeLimit)
    }

    /// Saves a device's descriptors and hands over the rest. Nothing changes here.
    static func put(_ device: VFIOUserPreserver.Assignment, to cpr: CprController) throws(VMMError) {
        let (connection, name) = (device.connection, device.connection.name)
        let hasRequests = connection.isConnected && connection.requestSocket >= 0
        if connection.isConnected { try cpr.fds.resave(Descriptor.connection.name(name), connection.socket) }
        if hasRequests { try cpr.fds.resave(Descriptor.requests.name(name), connection.requestSocket) }
        let files = connection.regionFiles.sorted { $0.key < $1.key }
        for (index, fd) in files { try cpr.fds.resave(Descriptor.region.name(name), id: index, fd) }
        var state = StateWriter()
        state.put("message-fds", UInt64(connection.capabilities.messageFDs))
        state.put("transfer", UInt64(connection.capabilities.transfer))
        device.function.shape.put(into: &state)
        state.put("ram", connection.ram.numbers)
        try device.function.interrupts.handOver(Descriptor.interrupt.name(name), to: cpr, &state)
        try device.function.notices.handOver(Descriptor.notice.name(name), to: cpr)
        state.put("connected", connection.isConnected)
        state.put("has-requests", hasRequests)
        state.put("region-files", files.map { UInt64($0.key) })
        cpr.handOver(part(name), state)
    }
}
