import BatonRuntime

/// HMP `xp /fmt address`: guest-physical memory, in QEMU's notation: a count,
/// a format (x, d, u, o, c) and a size (b, h, w, g). Reads RAM only: looking
/// at a device's registers could change its state.
enum ExaminePhysical {
    private static let countLimit = 4096

    private struct Format {
        var count = 1
        var kind: Character = "x"
        var size = 4
    }

    static func register(_ vm: VirtualMachine) throws(VMMError) {
        try vm.commands.add(
            HMPCommand("xp", parameters: "/fmt addr", help: "physical memory dump starting at 'addr'") {
                [unowned vm] (line: String) throws(VMMError) -> String in
                var format = Format()
                var rest = line
                if line.hasPrefix("/") {
                    let (first, address) = HMPExecutor.split(line)
                    format = try parse(first)
                    rest = address
                }
                guard let address = SizeText.unsignedNumber(rest) else {
                    throw VMMError("xp: '\(rest)' is not an address")
                }
                return try dump(vm.addressSpace, address, format)
            })
    }

    private static func parse(_ text: String) throws(VMMError) -> Format {
        var format = Format()
        let letters = text.dropFirst()
        let digits = letters.prefix { $0.isASCII && $0.isNumber }
        if !digits.isEmpty {
            guard let count = Int(digits), (1...countLimit).contains(count) else {
                throw VMMError("xp: the count must be from 1 to \(countLimit), not \(digits)")
            }
            format.count = count
        }
        for letter in letters.dropFirst(digits.count) {
            switch letter {
            case "x", "d", "u", "o", "c": format.kind = letter
            case "b": format.size = 1
            case "h": format.size = 2
            case "w": format.size = 4
            case "g": format.size = 8
            default: throw VMMError("xp: invalid char in format: '\(letter)'")
            }
        }
        return format
    }

    private static func dump(_ space: AddressSpace, _ start: UInt64, _ format: Format) throws(VMMError) -> String {
        let perLine = format.kind == "c" ? 8 : 16 / format.size
        var text = ""
        for index in 0..<format.count {
            let address = start &+ UInt64(index * format.size)
            guard let range = space.ramRange(containing: address),
                range.size - (address - range.start) >= UInt64(format.size)
            else {
                return text + (index == 0 ? "" : "\n") + "Cannot access memory at \(Hex(address))\n"
            }
            if index % perLine == 0 { text += (index == 0 ? "" : "\n") + padded(address, radix: 16, width: 16) + ":" }
            var value: UInt64 = 0
            for byte in (0..<format.size).reversed() {
                value =
                    value << 8
                    | UInt64((range.host + Int(address - range.start) + byte).load(as: UInt8.self))
            }
            text += " " + describe(value, format)
        }
        return text + "\n"
    }

    private static func describe(_ value: UInt64, _ format: Format) -> String {
        let bits = format.size * 8
        switch format.kind {
        case "d": return String(Int64(bitPattern: value << (64 - bits)) >> (64 - bits))
        case "u": return String(value)
        case "o": return "0" + String(value, radix: 8)
        case "c":
            let isPrintable = value >= 0x20 && value < 0x7F
            return isPrintable ? "'\(Unicode.Scalar(UInt8(value)))'" : "'\\x" + padded(value, radix: 16, width: 2) + "'"
        default: return "0x" + padded(value, radix: 16, width: format.size * 2)
        }
    }

    private static func padded(_ value: UInt64, radix: Int, width: Int) -> String {
        let digits = String(value, radix: radix)
        return String(repeating: "0", count: max(0, width - digits.utf8.count)) + digits
    }
}
