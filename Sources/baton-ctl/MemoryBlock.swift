import BatonRuntime

/// A RAM block as a checkpoint or a CPR state names it: which memory it is.
struct MemoryBlock: CustomStringConvertible {
    let name: String
    let length: UInt64
    var file: String?
    var inode: UInt64?
    /// The descriptor, in a CPR state.
    var descriptor: UInt64?
    /// The contents are in the checkpoint itself.
    var isContained = false

    /// The blocks of the section `ram`, and what `ram-contents` says of them.
    static func forEach(in container: SectionContainer, _ body: (MemoryBlock) -> Void) throws(VMMError) {
        guard let section = container.section("ram") else { return }
        let contained = try names(container.section("ram-contents"), container)
        let reader = try container.reader(section)
        for index in 0..<(try reader.unsigned("count", in: 0...1_000_000)) {
            let name = try reader.string("\(index).name")
            var block = MemoryBlock(name: name, length: try reader.unsigned("\(index).used-length"))
            if reader.has("\(index).file") { block.file = try reader.string("\(index).file") }
            if reader.has("\(index).inode") { block.inode = try reader.unsigned("\(index).inode") }
            if reader.has("\(index).fd") { block.descriptor = try reader.unsigned("\(index).fd") }
            block.isContained = contained.contains(name)
            body(block)
        }
    }

    private static func names(
        _ section: SectionContainer.Section?, _ container: SectionContainer
    ) throws(VMMError) -> Set<String> {
        guard let section else { return [] }
        let reader = try container.reader(section)
        var names: Set<String> = []
        for index in 0..<(try reader.unsigned("count", in: 0...1_000_000)) {
            names.insert(try reader.string("\(index).name"))
        }
        return names
    }

    var description: String {
        var text = "\(name): \(length) bytes"
        if let file { text += ", \(file)" }
        if let inode { text += ", inode \(inode)" }
        if let descriptor { text += ", fd \(descriptor)" }
        if isContained { text += ", contents follow the sections" }
        return text
    }

    var json: JSON {
        var object: JSONObject = ["name": .string(name), "length": JSON(length)]
        if let file { object["file"] = .string(file) }
        if let inode { object["inode"] = JSON(inode) }
        if let descriptor { object["fd"] = JSON(descriptor) }
        object["contained"] = .bool(isContained)
        return .object(object)
    }
}
