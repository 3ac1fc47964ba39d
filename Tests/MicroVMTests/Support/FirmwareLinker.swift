import BatonRuntime
import Firmware

/// Does what firmware does with `etc/table-loader`: gives the files places, and carries the commands out.
struct FirmwareLinker {
    private(set) var blobs: [String: [UInt8]]
    private(set) var addresses: [String: UInt64] = [:]
    /// What was wrong with the commands.
    private(set) var problems: [String] = []

    /// - Parameter place: where a file goes, which it has asked for with an alignment and a zone (2: below 1 MiB).
    init(
        _ files: [FwCfgFileContents], commands: [UInt8],
        place: (_ name: String, _ align: UInt32, _ zone: UInt8) -> UInt64
    ) {
        blobs = Dictionary(uniqueKeysWithValues: files.map { ($0.name, $0.bytes) })
        guard commands.count % 128 == 0 else {
            problems.append("\(commands.count) bytes of commands")
            return
        }
        for start in stride(from: 0, to: commands.count, by: 128) {
            let command = Array(commands[start..<start + 128])
            let name = Self.text(command, 4)
            switch command.number(0, UInt32.self) {
            case 1:
                if blobs[name] == nil || addresses[name] != nil { problems.append("allocation of \(name)") }
                addresses[name] = place(name, command.number(60, UInt32.self), command[64])
            case 2: addPointer(to: name, command)
            case 3: addChecksum(to: name, command)
            default: problems.append("command \(command.number(0, UInt32.self))")
            }
        }
    }

    private static func text(_ bytes: [UInt8], _ offset: Int) -> String {
        String(decoding: bytes[offset..<offset + 56].prefix { $0 != 0 }, as: UTF8.self)
    }

    private mutating func addPointer(to name: String, _ command: [UInt8]) {
        let (offset, size) = (Int(command.number(116, UInt32.self)), Int(command[120]))
        guard var bytes = blobs[name], addresses[name] != nil, let target = addresses[Self.text(command, 60)],
            offset + size <= bytes.count
        else {
            problems.append("pointer in \(name)")
            return
        }
        let value = bytes[offset..<offset + size].reversed().reduce(0 as UInt64) { $0 << 8 | UInt64($1) } + target
        bytes.replaceSubrange(offset..<offset + size, with: littleEndianBytes(value).prefix(size))
        blobs[name] = bytes
    }

    private mutating func addChecksum(to name: String, _ command: [UInt8]) {
        let numbers = [60, 64, 68].map { Int(command.number($0, UInt32.self)) }
        guard var bytes = blobs[name], addresses[name] != nil, numbers[0] < bytes.count,
            numbers[1] + numbers[2] <= bytes.count
        else {
            problems.append("checksum in \(name)")
            return
        }
        bytes[numbers[0]] &-= bytes[numbers[1]..<numbers[1] + numbers[2]].reduce(0, &+)
        blobs[name] = bytes
    }
}

/// A file of fw_cfg by its name.
struct FwCfgFileContents {
    var name: String
    var bytes: [UInt8]
}
