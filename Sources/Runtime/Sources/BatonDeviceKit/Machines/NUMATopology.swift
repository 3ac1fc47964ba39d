import BatonBase
import BatonMachine

/// The guest's NUMA nodes: `-numa`. Main memory is that of the nodes, in their order and without gaps.
public struct NUMATopology {
    public struct Node {
        /// Nil for a node without memory.
        public var memory: RAMBlock?
        /// Indexes of CPUs, in order.
        public var cpus: [Int]

        public init(memory: RAMBlock?, cpus: [Int]) { (self.memory, self.cpus) = (memory, cpus) }

        /// Bytes of memory.
        public var size: UInt64 { UInt64(memory?.usedLength ?? 0) }
    }

    /// At least one.
    public let nodes: [Node]
    /// From each node to each, 10 for a node itself; nil when nothing was said.
    public let distances: [[UInt8]]?

    public init(nodes: [Node], distances: [[UInt8]]? = nil) { (self.nodes, self.distances) = (nodes, distances) }

    /// The node of a CPU.
    public func node(ofCPU cpu: Int) -> Int? { nodes.firstIndex { $0.cpus.contains(cpu) } }

    /// The blocks of main memory.
    public var blocks: [RAMBlock] { nodes.compactMap(\.memory) }
}

/// The guest's nodes, for monitors.
final class NUMANodes: MachineParts {
    fileprivate var topology: NUMATopology?
}

extension VirtualMachine {
    /// Nil for a machine without `-numa`.
    public var numa: NUMATopology? {
        get { parts(NUMANodes.self).topology }
        set { parts(NUMANodes.self).topology = newValue }
    }
}
