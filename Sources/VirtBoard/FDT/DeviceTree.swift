import BatonRuntime

/// A node of a device tree: properties and children in order.
public final class DeviceTreeNode {
    public let name: String
    public private(set) var properties: [(name: String, value: [UInt8])] = []
    public private(set) var children: [DeviceTreeNode] = []

    public init(_ name: String) { self.name = name }

    /// Adds a child, or gives the one that there is.
    @discardableResult
    public func child(_ name: String) -> DeviceTreeNode {
        if let known = find(name) { return known }
        let node = DeviceTreeNode(name)
        children.append(node)
        return node
    }

    /// The child of that name.
    public func find(_ name: String) -> DeviceTreeNode? { children.first { $0.name == name } }

    /// Adds a child, or a property, whose name no other has.
    func append(_ node: DeviceTreeNode) { children.append(node) }
    func append(_ property: String, bytes: [UInt8]) { properties.append((property, bytes)) }

    public func value(_ property: String) -> [UInt8]? { properties.first { $0.name == property }?.value }

    // MARK: Property values (Devicetree specification 0.4, 2.2.4)

    public func set(_ property: String, bytes: [UInt8]) {
        if let index = properties.firstIndex(where: { $0.name == property }) {
            properties[index].value = bytes
        } else {
            properties.append((property, bytes))
        }
    }

    /// An empty value: a flag.
    public func set(_ property: String) { set(property, bytes: []) }

    public func set(_ property: String, _ text: String) { set(property, bytes: Array(text.utf8) + [0]) }

    public func set(_ property: String, strings: [String]) {
        set(property, bytes: strings.flatMap { Array($0.utf8) + [0] })
    }

    /// 32-bit cells.
    public func set(_ property: String, _ cells: UInt32...) { set(property, cells: cells) }

    public func set(_ property: String, cells: [UInt32]) {
        set(property, bytes: cells.flatMap(DeviceTreeNode.bigEndian))
    }

    /// Numbers of two cells each.
    public func set(_ property: String, cells64: [UInt64]) {
        set(property, bytes: cells64.flatMap(DeviceTreeNode.bigEndian))
    }

    static func bigEndian<T: FixedWidthInteger>(_ value: T) -> [UInt8] {
        withUnsafeBytes(of: value.bigEndian) { Array($0) }
    }
}

/// A device tree, to be made, read or patched.
public struct DeviceTree {
    public let root: DeviceTreeNode
    /// The memory reservation block.
    public var reservations: [(address: UInt64, size: UInt64)] = []
    public var bootCPU: UInt32 = 0

    public init(root: DeviceTreeNode = DeviceTreeNode("")) { self.root = root }

    static let magic: UInt32 = 0xd00d_feed
    static let version: UInt32 = 17
    static let lastCompatibleVersion: UInt32 = 16
    static let headerSize = 40

    enum Token {
        static let beginNode: UInt32 = 1
        static let endNode: UInt32 = 2
        static let property: UInt32 = 3
        static let nop: UInt32 = 4
        static let end: UInt32 = 9
    }

    /// The flattened form, version 17 (Devicetree specification 0.4, 5).
    public func flattened() -> [UInt8] {
        var structure: [UInt8] = []
        var strings: [UInt8] = []
        var offsets: [String: UInt32] = [:]

        func cell(_ value: UInt32) { structure += DeviceTreeNode.bigEndian(value) }
        func pad() { while structure.count % 4 != 0 { structure.append(0) } }
        func add(_ node: DeviceTreeNode) {
            cell(Token.beginNode)
            structure += Array(node.name.utf8) + [0]
            pad()
            for property in node.properties {
                let offset: UInt32
                if let known = offsets[property.name] {
                    offset = known
                } else {
                    offset = UInt32(strings.count)
                    offsets[property.name] = offset
                    strings += Array(property.name.utf8) + [0]
                }
                cell(Token.property)
                cell(UInt32(property.value.count))
                cell(offset)
                structure += property.value
                pad()
            }
            for child in node.children { add(child) }
            cell(Token.endNode)
        }
        add(root)
        cell(Token.end)

        var reserved: [UInt8] = []
        for entry in reservations + [(0, 0)] {
            reserved += DeviceTreeNode.bigEndian(entry.address) + DeviceTreeNode.bigEndian(entry.size)
        }
        let structureOffset = DeviceTree.headerSize + reserved.count
        let stringsOffset = structureOffset + structure.count
        let header: [UInt32] = [
            DeviceTree.magic, UInt32(stringsOffset + strings.count), UInt32(structureOffset), UInt32(stringsOffset),
            UInt32(DeviceTree.headerSize), DeviceTree.version, DeviceTree.lastCompatibleVersion, bootCPU,
            UInt32(strings.count), UInt32(structure.count),
        ]
        return header.flatMap(DeviceTreeNode.bigEndian) + reserved + structure + strings
    }
}
