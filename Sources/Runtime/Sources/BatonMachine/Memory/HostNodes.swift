import BatonBase
import CBaton
import Glibc

/// Which of the host's NUMA nodes a backend's pages come from: `host-nodes=` and `policy=` of a memory backend, as in
/// QEMU's `HostMemoryBackend`.
public struct HostNodes: Equatable {
    /// As in QEMU, and as mbind(2) numbers them.
    public enum Policy: String, CaseIterable {
        case `default`, preferred, bind, interleave

        fileprivate var mode: Int32 {
            switch self {
            case .default: 0
            case .preferred: 1
            case .bind: 2
            case .interleave: 3
            }
        }
    }

    public let policy: Policy
    /// In order, each once.
    public let nodes: [Int]

    /// QEMU's MAX_NODES.
    static let maximum = 128

    /// - Throws: QEMU's errors for what does not fit together.
    public init(policy: Policy = .default, nodes: [Int] = []) throws(VMMError) {
        self.policy = policy
        self.nodes = Set(nodes).sorted()
        if policy == .default, !nodes.isEmpty {
            throw VMMError(
                "host-nodes must be empty for policy default, or you should explicitly specify a policy other than "
                    + "default")
        }
        if policy != .default, nodes.isEmpty {
            throw VMMError("host-nodes must be set for policy \(policy.rawValue)")
        }
        if let node = self.nodes.first(where: { $0 >= HostNodes.maximum }) {
            throw VMMError("Invalid host-nodes value: \(node)")
        }
    }

    /// Takes `host-nodes=0-1,,3` or `host-nodes.0=…`, and `policy=`.
    public init(_ options: KeyValueOptions) throws(VMMError) {
        var nodes: [Int] = []
        var texts: [String] = []
        for text in try options.strings("host-nodes") { texts += text.split(separator: ",").map(String.init) }
        if let list = options.under("host-nodes") {
            for key in list.keys { texts += try list.strings(key) }
        }
        for text in texts {
            let ends = text.split(separator: "-", omittingEmptySubsequences: false).map {
                SizeText.unsignedNumber(String($0))
            }
            guard ends.count <= 2, let first = ends[0], let last = ends[ends.count - 1], first <= last, last < 1 << 16
            else { throw VMMError("Parameter 'host-nodes' expects an int64 value or range") }
            nodes += Int(first)...Int(last)
        }
        try self.init(policy: try options.enumeration("policy", Policy.self) ?? .default, nodes: nodes)
    }

    /// Has the pages of a mapping come from there. Those of a shared file do so for whoever maps it later.
    func apply(to host: UnsafeMutableRawPointer, length: Int) throws(VMMError) {
        guard policy != .default else { return }
        let bits = UInt.bitWidth
        var mask = [UInt](repeating: 0, count: HostNodes.maximum / bits)
        for node in nodes { mask[node / bits] |= 1 << UInt(node % bits) }
        // The kernel leaves the last bit out.
        guard cbaton_mbind(host, length, policy.mode, mask, UInt(HostNodes.maximum)) == 0 else {
            if errno == ENOSYS {
                throw VMMError("NUMA node binding are not supported by this host", hint: "Leave policy= out.")
            }
            throw .system("cannot bind memory to host NUMA nodes")
        }
    }
}
