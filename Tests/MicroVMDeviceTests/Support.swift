import BatonRuntime
@_exported import DeviceTestSupport
import Glibc
import TestSupport

/// A VM without CPUs, whose devices a test drives as a guest would, and what it has told its monitors.
final class DeviceMachine {
    let vm: VirtualMachine
    private(set) var events: [(name: String, data: JSONObject)] = []

    init() throws {
        DescriptorLimit.raise()
        vm = try VirtualMachine()
        vm.onEvent { [unowned self] name, data in events.append((name, data)) }
    }

    var eventNames: [String] { events.map(\.name) }
    func event(_ name: String) -> JSONObject? { events.first { $0.name == name }?.data }

    /// As `VirtualMachine.wait`.
    func wait(until condition: () -> Bool) -> Bool { vm.wait(until: condition) }
}

/// A chardev whose peer is the test.
final class TestChardev: Chardev {
    private(set) var written: [UInt8] = []
    /// Bytes that the peer takes.
    var room = Int.max

    init(_ id: String = "test") { super.init(id: id, backend: "test") }

    override func write(_ bytes: UnsafeRawBufferPointer) -> Int {
        let count = min(room, bytes.count)
        written += bytes[..<count]
        if room != Int.max { room -= count }
        return count
    }
}

/// What a test puts in place of a field.
enum FieldValue {
    case number(UInt64)
    case bytes([UInt8])
    case nothing
}

/// A device's state with one field changed, left out, or added.
func savedState(_ device: any Device, with changed: String, _ value: FieldValue) throws -> [UInt8] {
    var writer = StateWriter()
    func put(_ value: FieldValue) {
        switch value {
        case .number(let number): writer.put(changed, number)
        case .bytes(let bytes): writer.put(changed, bytes: bytes)
        case .nothing: break
        }
    }
    let fields = try reader(of: savedState(device), for: device).dump
    for field in fields {
        if field.name == changed {
            put(value)
        } else if field.type == .bytes {
            writer.put(field.name, bytes: Array(field.payload))
        } else {
            let number = field.payload.reversed().reduce(0) { $0 << 8 | UInt64($1) }
            writer.put(field.name, number)
        }
    }
    if !fields.contains(where: { $0.name == changed }) { put(value) }
    return writer.encoded()
}

/// Whether a device refuses its state with one field changed, and is as before then.
func refuses(_ device: any Device, _ field: String, _ value: FieldValue) throws -> Bool {
    let before = savedState(device)
    let state = try savedState(device, with: field, value)
    do {
        try loadState(state, into: device)
        return false
    } catch is VMMError {
        return savedState(device) == before
    }
}
