import BatonRuntime
import Glibc

/// A QMP command that is a foreign module's function: JSON to C and back.
struct ForeignCommand {
    let function: ForeignFunction
    let arguments: [ForeignParameter]
    let results: [ForeignParameter]

    /// Room for one result: what a pointer of any of the types points to, and
    /// for bytes their number behind it.
    private typealias Slot = UnsafeMutableRawPointer
    private static let slotSize = 16

    /// - Parameter given: checked against the arguments' types.
    func run(_ given: JSONObject) throws(VMMError) -> JSON {
        var values: [ForeignFunction.Value] = []
        var descriptors: [String] = []
        for parameter in arguments {
            try marshal(parameter, given[parameter.name], &values, &descriptors)
        }
        let slots = Slot.allocate(byteCount: max(1, results.count) * Self.slotSize, alignment: 16)
        defer { slots.deallocate() }
        memset(slots, 0, max(1, results.count) * Self.slotSize)
        for (index, parameter) in results.enumerated() {
            values.append(.pointer(slots + index * Self.slotSize))
            if parameter.item.letter == .bytes { values.append(.pointer(slots + index * Self.slotSize + 8)) }
        }
        let (outcome, failure) = try function.call(values) { raw -> (status: Int32, object: JSONObject?) in
            (raw.i, raw.i == 0 ? object(slots) : nil)
        }
        guard outcome.status == 0 else { throw function.error(failure, outcome.status) }
        // From here on they are the module's.
        for name in descriptors { function.module.namedFDs?.release(name) }
        guard let object = outcome.object else {
            throw VMMError("\(function.module.name): \(function.name) gave a result that is not UTF-8")
        }
        return .object(object)
    }

    private func marshal(
        _ parameter: ForeignParameter, _ value: JSON?, _ values: inout [ForeignFunction.Value],
        _ descriptors: inout [String]
    ) throws(VMMError) {
        if parameter.item.isOptional { values.append(.bool(value != nil)) }
        switch parameter.item.letter {
        case .bool: values.append(.bool(value?.boolValue ?? false))
        case .int32, .uint32, .int64, .uint64:
            if let value { return values.append(try parameter.integer(value)) }
            switch parameter.item.letter {
            case .int32: values.append(.int32(0))
            case .uint32: values.append(.uint32(0))
            case .int64: values.append(.int64(0))
            default: values.append(.uint64(0))
            }
        case .double:
            switch value {
            case .int(let number): values.append(.double(Double(number)))
            case .uint(let number): values.append(.double(Double(number)))
            case .double(let number): values.append(.double(number))
            default: values.append(.double(0))
            }
        case .string:
            guard let text = value?.stringValue else { return values.append(.pointer(nil)) }
            guard !text.utf8.contains(0) else {
                throw VMMError("Parameter '\(parameter.name)' must not contain a zero byte")
            }
            values.append(function.text(text))
        case .descriptor:
            guard let name = value?.stringValue else { return values.append(.int32(-1)) }
            guard let fd = function.module.namedFDs?.find(name) else {
                throw VMMError("File descriptor named '\(name)' has not been found")
            }
            guard !descriptors.contains(name) else {
                throw VMMError("File descriptor named '\(name)' is given twice")
            }
            descriptors.append(name)
            values.append(.int32(fd))
        case .bytes:
            guard let text = value?.stringValue else { return values += [.pointer(nil), .size(0)] }
            guard let bytes = Base64.decode(text) else {
                throw VMMError("Parameter '\(parameter.name)' expects base64 data")
            }
            values += [.pointer(function.module.lend(bytes).map { UnsafeRawPointer($0) }), .size(bytes.count)]
        case .host, .nothing: break
        }
    }

    /// The results that the function stored; nil when one is not UTF-8.
    private func object(_ slots: Slot) -> JSONObject? {
        var object = JSONObject()
        for (index, parameter) in results.enumerated() {
            let slot = slots + index * Self.slotSize
            switch parameter.item.letter {
            case .bool: object[parameter.name] = .bool(slot.load(as: UInt8.self) != 0)
            case .int32: object[parameter.name] = .int(Int64(slot.load(as: Int32.self)))
            case .uint32: object[parameter.name] = .int(Int64(slot.load(as: UInt32.self)))
            case .int64: object[parameter.name] = .int(slot.load(as: Int64.self))
            case .uint64: object[parameter.name] = JSON(slot.load(as: UInt64.self))
            case .double: object[parameter.name] = .double(slot.load(as: Double.self))
            case .string:
                let pointer = slot.load(as: UnsafePointer<CChar>?.self)
                let bytes = UnsafeRawBufferPointer(start: pointer, count: pointer.map { strlen($0) } ?? 0)
                guard let text = String(validating: bytes, as: UTF8.self) else { return nil }
                object[parameter.name] = .string(text)
            case .bytes:
                let pointer = slot.load(as: UnsafeRawPointer?.self)
                let count = pointer == nil ? 0 : max(0, slot.load(fromByteOffset: 8, as: Int.self))
                object[parameter.name] = .string(
                    Base64.encode(Array(UnsafeRawBufferPointer(start: pointer, count: count))))
            case .descriptor, .host, .nothing: break
            }
        }
        return object
    }
}
