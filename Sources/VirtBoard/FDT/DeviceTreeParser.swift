import BatonRuntime

extension DeviceTree {
    /// The largest blob that is accepted, as in QEMU (FDT_MAX_SIZE).
    public static let maxSize = 1 << 20
    private static let maxDepth = 32
    /// Bytes of a name. The specification allows 31; without a limit names that share their bytes, as they may, take
    /// gigabytes.
    private static let maxName = 255

    /// A node whose end has not been reached. Of a node with many children and properties each is looked up at once.
    private struct OpenNode {
        let node: DeviceTreeNode
        var children: Set<String> = []
        var properties: Set<String> = []
    }

    /// Reads a flattened device tree of version 16 or 17. Every offset and
    /// length in it is checked.
    /// - Throws: libfdt's name for what is wrong, as QEMU shows it.
    public init(flattened blob: [UInt8]) throws(VMMError) {
        func cell(_ offset: Int) -> UInt32? {
            guard offset >= 0, offset + 4 <= blob.count else { return nil }
            return blob[offset..<offset + 4].reduce(0) { $0 << 8 | UInt32($1) }
        }
        func header(_ index: Int) throws(VMMError) -> UInt32 {
            guard let value = cell(index * 4) else { throw VMMError("FDT_ERR_TRUNCATED") }
            return value
        }
        guard try header(0) == DeviceTree.magic else { throw VMMError("FDT_ERR_BADMAGIC") }
        let total = Int(try header(1))
        guard total >= DeviceTree.headerSize, total <= blob.count else { throw VMMError("FDT_ERR_TRUNCATED") }
        let version = try header(5)
        guard version >= 16, try header(6) <= DeviceTree.version else { throw VMMError("FDT_ERR_BADVERSION") }
        let structureStart = Int(try header(2))
        let stringsStart = Int(try header(3))
        let reservationsStart = Int(try header(4))
        let stringsSize = Int(try header(8))
        let structureSize = version >= 17 ? Int(try header(9)) : max(0, total - structureStart)
        guard structureStart % 4 == 0, structureStart + structureSize <= total, stringsStart + stringsSize <= total,
            reservationsStart % 8 == 0, reservationsStart <= total
        else { throw VMMError("FDT_ERR_TRUNCATED") }
        let structureEnd = structureStart + structureSize
        let stringsEnd = stringsStart + stringsSize

        func text(_ start: Int, before end: Int) throws(VMMError) -> (String, next: Int) {
            guard start <= end, let zero = blob[start..<end].prefix(DeviceTree.maxName + 1).firstIndex(of: 0),
                let value = String(validating: blob[start..<zero], as: UTF8.self)
            else { throw VMMError("FDT_ERR_BADSTRUCTURE") }
            return (value, zero + 1)
        }

        let rootNode = DeviceTreeNode("")
        var stack: [OpenNode] = []
        var position = structureStart
        var done = false
        while !done {
            guard position + 4 <= structureEnd, let token = cell(position) else { throw VMMError("FDT_ERR_TRUNCATED") }
            position += 4
            switch token {
            case Token.beginNode:
                let (name, next) = try text(position, before: structureEnd)
                position = (next + 3) & ~3
                if !stack.isEmpty {
                    guard stack.count < DeviceTree.maxDepth, !name.isEmpty,
                        stack[stack.count - 1].children.insert(name).inserted
                    else { throw VMMError("FDT_ERR_BADSTRUCTURE") }
                    let node = DeviceTreeNode(name)
                    stack[stack.count - 1].node.append(node)
                    stack.append(OpenNode(node: node))
                } else {
                    guard position > structureStart, rootNode.properties.isEmpty, rootNode.children.isEmpty,
                        name.isEmpty
                    else { throw VMMError("FDT_ERR_BADSTRUCTURE") }
                    stack.append(OpenNode(node: rootNode))
                }
            case Token.property:
                guard !stack.isEmpty, position + 8 <= structureEnd, let length = cell(position),
                    let nameOffset = cell(position + 4), Int(nameOffset) < stringsSize
                else { throw VMMError("FDT_ERR_BADSTRUCTURE") }
                position += 8
                guard Int(length) <= structureEnd - position else { throw VMMError("FDT_ERR_TRUNCATED") }
                let (name, _) = try text(stringsStart + Int(nameOffset), before: stringsEnd)
                guard !name.isEmpty, stack[stack.count - 1].properties.insert(name).inserted else {
                    throw VMMError("FDT_ERR_BADSTRUCTURE")
                }
                stack[stack.count - 1].node.append(name, bytes: Array(blob[position..<position + Int(length)]))
                position = (position + Int(length) + 3) & ~3
            case Token.endNode:
                guard stack.popLast() != nil else { throw VMMError("FDT_ERR_BADSTRUCTURE") }
            case Token.nop:
                break
            case Token.end:
                guard stack.isEmpty, position > structureStart + 4 else { throw VMMError("FDT_ERR_BADSTRUCTURE") }
                done = true
            default:
                throw VMMError("FDT_ERR_BADSTRUCTURE")
            }
        }

        self.init(root: rootNode)
        bootCPU = try header(7)
        position = reservationsStart
        while true {
            guard position + 16 <= total, let a = cell(position), let b = cell(position + 4),
                let c = cell(position + 8), let d = cell(position + 12)
            else { throw VMMError("FDT_ERR_TRUNCATED") }
            let address = UInt64(a) << 32 | UInt64(b)
            let size = UInt64(c) << 32 | UInt64(d)
            if address == 0 && size == 0 { break }
            reservations.append((address, size))
            position += 16
        }
    }
}
