import BatonRuntime

/// `-blockdev`: which nodes the VMM opens itself, and which belong to a disk that a storage daemon serves.
///
/// The VMM has files and block devices, and `raw` on them. Any other driver is the daemon's, with all nodes below it,
/// which it gets as they were given.
struct BlockNodes {
    private struct Node {
        let text: String
        let name: String
        let driver: String
        let filename: String
        let readOnly: Bool
        /// Nodes that it names.
        let children: [String]
        /// `raw` with nothing but a file, or that file.
        let isPlain: Bool
    }

    /// Keys whose values are no names of other nodes.
    private static let ownKeys: Set<String> = ["driver", "node-name", "filename"]

    /// Arguments for the VMM, in order.
    let own: [String]
    /// Disks for daemons.
    let served: [StorageDaemon.Disk]

    init(_ arguments: [String]) throws(VMMError) {
        var nodes: [Node] = []
        for text in arguments { nodes.append(try BlockNodes.parse(text, nodes)) }
        let byName = Dictionary(nodes.map { ($0.name, $0) }) { first, _ in first }
        let theirs = nodes.filter { !BlockNodes.isOwn($0, byName) }
        let children = Set(theirs.flatMap(\.children))
        own = nodes.filter { BlockNodes.isOwn($0, byName) && !children.contains($0.name) }.map(\.text)
        served = theirs.filter { !children.contains($0.name) }.map { root in
            let parts = BlockNodes.below(root, byName)
            let texts = nodes.filter { parts.contains($0.name) }.map(\.text)
            let filename = nodes.first { parts.contains($0.name) && !$0.filename.isEmpty }?.filename ?? root.name
            let below = nodes.filter { parts.contains($0.name) }
            let named = below.filter { !$0.filename.isEmpty && !$0.readOnly }.map(\.filename)
            return StorageDaemon.Disk(
                id: root.name, filename: filename, format: root.driver, readOnly: root.readOnly, nodes: { _ in texts },
                root: root.name,
                written: below.allSatisfy { node in named.allSatisfy { ImageFormat.isWrittenAlone($0, node.driver) } }
                    ? named : nil)
        }
    }

    private static func parse(_ text: String, _ known: [Node]) throws(VMMError) -> Node {
        let options = try KeyValueOptions(text, impliedKey: "driver", style: .keyval)
        let driver = try options.requiredString("driver")
        let name = try options.requiredIdentifier("node-name")
        var filename = try options.string("filename")
        if filename == nil { filename = try options.string("file.filename") }
        var children: [String] = []
        for key in options.keys where !ownKeys.contains(key) && !key.contains(".") {
            if let value = try? options.string(key), known.contains(where: { $0.name == value }) {
                children.append(value)
            }
        }
        return Node(
            text: text, name: name, driver: driver, filename: filename ?? "",
            readOnly: try options.bool("read-only") ?? false,
            children: children, isPlain: try isPlain(driver, options))
    }

    private static func isPlain(_ driver: String, _ options: KeyValueOptions) throws(VMMError) -> Bool {
        switch driver {
        case "file", "host_device": return true
        case "raw":
            // A part of an image, or an image in something else.
            guard ["offset", "size"].allSatisfy({ !options.has($0) }) else { return false }
            return try ["file", "host_device", nil].contains(options.string("file.driver"))
        default: return false
        }
    }

    private static func isOwn(_ node: Node, _ nodes: [String: Node]) -> Bool {
        node.isPlain && node.children.allSatisfy { name in nodes[name].map { isOwn($0, nodes) } ?? true }
    }

    /// Names of a node and all nodes below it: each comes after those that it names.
    private static func below(_ node: Node, _ nodes: [String: Node]) -> Set<String> {
        node.children.reduce(into: [node.name]) { names, child in
            if let child = nodes[child] { names.formUnion(below(child, nodes)) }
        }
    }
}
