import BatonRuntime
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

    /// Runs the loop's handlers until `condition` holds.
    /// - Returns: false when it does not within two minutes.
    func wait(until condition: () -> Bool) -> Bool {
        let deadline = EventLoop.now + 120_000_000_000
        while !condition() {
            guard EventLoop.now < deadline else { return false }
            vm.loop.poll(timeout: 10_000_000)
        }
        return true
    }
}

/// A level that a test looks at.
final class Wire {
    private(set) var level = false
    private(set) var rises = 0
    var line: InterruptLine {
        InterruptLine { [self] level in
            self.level = level
            if level { rises += 1 }
        }
    }
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

/// The state of a device as it goes into a checkpoint.
func savedState(_ device: any Device) -> [UInt8] {
    var writer = StateWriter()
    device.save(to: &writer)
    return writer.encoded()
}

func reader(of state: [UInt8], for device: any Device) throws -> StateReader {
    try StateReader(section: device.stateName, version: device.stateVersion, payload: state[...])
}

func loadState(_ state: [UInt8], into device: any Device) throws {
    try device.load(from: reader(of: state, for: device))
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

/// A small generator with a fixed sequence, for fuzzing (SplitMix64).
struct Randomness: RandomNumberGenerator {
    private var state: UInt64
    init(seed: UInt64) { state = seed }
    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var z = state
        z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
        z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
        return z ^ (z >> 31)
    }
}
