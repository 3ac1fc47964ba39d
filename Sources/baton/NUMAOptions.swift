import BatonRuntime

/// `-numa node,…`, `-numa cpu,…` and `-numa dist,…`, with QEMU's rules and errors (its hw/core/numa.c).
struct NUMAOptions {
    private struct Node {
        var memory: String?
        var cpus: [Int] = []
    }

    /// QEMU's MAX_NODES.
    private static let maximum = 128
    private static let localDistance: UInt64 = 10

    private let cpuCount: Int
    private var nodes: [Int: Node] = [:]
    private var distances: [Int: [Int: UInt8]] = [:]

    /// - Returns: nil without `-numa`.
    init?(_ invocation: Invocation, machine: MachineOptions) throws(VMMError) {
        guard invocation.has("numa") else { return nil }
        cpuCount = machine.topology.count
        guard machine.type.supportsNUMA else { throw VMMError("NUMA is not supported by this machine-type") }
        for option in invocation.inOrder(["numa"]) {
            try invocation.at(option.place) { () throws(VMMError) in
                do throws(VMMError) { try add(option.value) } catch { throw error.prefixed("-numa \(option.value)") }
            }
        }
    }

    private mutating func add(_ text: String) throws(VMMError) {
        let options = try KeyValueOptions(text, impliedKey: "type")
        switch try options.requiredString("type") {
        case "node": try addNode(options)
        case "cpu": try addCPU(options)
        case "dist": try addDistance(options)
        case let type where type.hasPrefix("hmat-"):
            throw VMMError(
                "ACPI Heterogeneous Memory Attribute Table (HMAT) is disabled", hint: "The board has no ACPI tables.")
        case let type: throw VMMError("Parameter 'type' does not accept value '\(type)'")
        }
        try options.finish()
    }

    // MARK: node

    private mutating func addNode(_ options: KeyValueOptions) throws(VMMError) {
        let id = Int(try options.number("nodeid", in: 0...0xffff) ?? UInt64(nodes.count))
        guard id < Self.maximum else { throw VMMError("Max number of NUMA nodes reached: \(id)") }
        guard nodes[id] == nil else { throw VMMError("Duplicate NUMA nodeid: \(id)") }
        var node = Node()
        for text in try options.strings("cpus") {
            let ends = text.split(separator: "-", omittingEmptySubsequences: false).map {
                SizeText.unsignedNumber(String($0))
            }
            guard ends.count <= 2, let first = ends[0], let last = ends[ends.count - 1], first <= last else {
                throw VMMError("Parameter 'cpus' expects a number or a range of them")
            }
            guard last < UInt64(cpuCount) else {
                throw VMMError("CPU index (\(last)) should be smaller than maxcpus (\(cpuCount))")
            }
            for cpu in Int(first)...Int(last) {
                try checkIsFree(cpu)
                node.cpus.append(cpu)
            }
        }
        node.memory = try options.string("memdev")
        if options.has("mem") {
            guard node.memory == nil else { throw VMMError("cannot specify both mem= and memdev=") }
            throw VMMError(
                "Parameter -numa node,mem is not supported by this machine type", hint: "Use -numa node,memdev instead")
        }
        nodes[id] = node
    }

    private func checkIsFree(_ cpu: Int) throws(VMMError) {
        guard let other = nodes.first(where: { $0.value.cpus.contains(cpu) }) else { return }
        throw VMMError("CPU is already assigned to node-id: \(other.key)")
    }

    // MARK: cpu

    private mutating func addCPU(_ options: KeyValueOptions) throws(VMMError) {
        guard let id = try options.number("node-id").flatMap({ Int(exactly: $0) }) else {
            throw VMMError("Missing mandatory node-id property")
        }
        guard nodes[id] != nil else {
            throw VMMError(
                "Invalid node-id=\(id), NUMA node must be defined with -numa node,nodeid=ID before it's used with "
                    + "-numa cpu,node-id=ID")
        }
        for key in ["socket-id", "die-id", "cluster-id", "core-id"] where options.has(key) {
            throw VMMError("\(key) is not supported", hint: "CPUs are told from each other by thread-id=.")
        }
        guard let cpu = try options.number("thread-id"), cpu < UInt64(cpuCount) else {
            throw VMMError("no match found", hint: "Give a thread-id= from 0 to \(cpuCount - 1).")
        }
        try checkIsFree(Int(cpu))
        nodes[id]?.cpus.append(Int(cpu))
    }

    // MARK: dist

    private mutating func addDistance(_ options: KeyValueOptions) throws(VMMError) {
        var ends: [Int] = []
        for key in ["src", "dst"] {
            guard let number = try options.number(key) else { throw VMMError("Parameter '\(key)' is missing") }
            guard number < UInt64(Self.maximum) else {
                throw VMMError("Invalid node \(number), max possible could be \(Self.maximum)")
            }
            ends.append(Int(number))
        }
        guard nodes[ends[0]] != nil, nodes[ends[1]] != nil else {
            throw VMMError(
                "Source/Destination NUMA node is missing. Please use '-numa node' option to declare it first.")
        }
        guard let value = try options.number("val", in: 0...0xff) else { throw VMMError("Parameter 'val' is missing") }
        guard value >= Self.localDistance else {
            throw VMMError("NUMA distance (\(value)) is invalid, it shouldn't be less than \(Self.localDistance).")
        }
        guard ends[0] != ends[1] || value == Self.localDistance else {
            throw VMMError("Local distance of node \(ends[0]) should be \(Self.localDistance).")
        }
        distances[ends[0], default: [:]][ends[1]] = UInt8(value)
    }

    // MARK: All of it

    /// What the guest gets. Claims the nodes' memory.
    /// - Parameters:
    ///   - size: `-m`, or the default.
    ///   - backend: `-machine memory-backend=`.
    func make(size: UInt64, backend: String?, path: String?, memory: GuestMemory) throws(VMMError) -> NUMATopology {
        for id in 0..<nodes.count where nodes[id] == nil { throw VMMError("numa: Node ID missing: \(id)") }
        let ids = Array(0..<nodes.count)
        let named = ids.compactMap { nodes[$0]?.memory }
        guard named.isEmpty || named.count == ids.count else {
            throw VMMError("memdev option must be specified for either all or no nodes")
        }
        if !named.isEmpty {
            if backend != nil {
                throw VMMError("'-machine memory-backend' and '-numa memdev' properties are mutually exclusive")
            }
            if path != nil { throw VMMError("'-mem-path' can't be used together with '-numa memdev'") }
        }
        let distances = try matrix()
        let cpus = assignedCPUs()
        var result: [NUMATopology.Node] = []
        for id in ids {
            let block = try nodes[id]?.memory.map { name throws(VMMError) in try memory.claimBackend(name) }
            result.append(NUMATopology.Node(memory: block, cpus: cpus[id]))
        }
        let total = result.reduce(0) { $0 + $1.size }
        guard total == size else {
            throw VMMError("total memory for NUMA nodes (\(Hex(total))) should equal RAM size (\(Hex(size)))")
        }
        return NUMATopology(nodes: result, distances: distances)
    }

    /// The CPUs of each node: one that no option names has the node that QEMU's board gives it.
    private func assignedCPUs() -> [[Int]] {
        var cpus = (0..<nodes.count).map { nodes[$0]?.cpus ?? [] }
        let missing = Set(0..<cpuCount).subtracting(cpus.joined()).sorted()
        if !missing.isEmpty, missing.count < cpuCount {
            Report.warning(
                "CPU(s) not present in any NUMA nodes: "
                    + missing.map { "CPU \($0) [thread-id: \($0)]" }.joined(separator: ", "))
        }
        for cpu in missing {
            cpus[min(nodes.count - 1, cpu / max(1, cpuCount / nodes.count))].append(cpu)
        }
        return cpus.map { $0.sorted() }
    }

    private func matrix() throws(VMMError) -> [[UInt8]]? {
        guard !distances.isEmpty else { return nil }
        func given(_ source: Int, _ destination: Int) -> UInt8? { distances[source]?[destination] }
        let ids = 0..<nodes.count
        var isAsymmetrical = false
        for source in ids {
            for destination in ids where destination > source {
                switch (given(source, destination), given(destination, source)) {
                case (nil, nil):
                    throw VMMError(
                        "The distance between node \(source) and \(destination) is missing, at least one distance "
                            + "value between each nodes should be provided.")
                case (let there?, let back?): if there != back { isAsymmetrical = true }
                default: break
                }
            }
        }
        if isAsymmetrical,
            ids.contains(where: { source in ids.contains { $0 != source && given(source, $0) == nil } })
        {
            throw VMMError(
                "At least one asymmetrical pair of distances is given, please provide distances for both directions "
                    + "of all node pairs.")
        }
        return ids.map { source in
            ids.map { destination in
                given(source, destination) ?? given(destination, source) ?? UInt8(Self.localDistance)
            }
        }
    }
}
