import BatonRuntime

extension VirtualMachine {
    /// Runs the loop's handlers until `condition` holds.
    /// - Returns: false when it does not within two minutes.
    public func wait(until condition: () -> Bool) -> Bool {
        let deadline = EventLoop.now + 120_000_000_000
        while !condition() {
            guard EventLoop.now < deadline else { return false }
            loop.poll(timeout: 10_000_000)
        }
        return true
    }
}

/// A level that a test looks at.
public final class Wire {
    public private(set) var level = false
    public private(set) var rises = 0

    public init() {}

    public var line: InterruptLine {
        InterruptLine { [self] level in
            self.level = level
            if level { rises += 1 }
        }
    }
}

/// The state of a device as it goes into a checkpoint.
public func savedState(_ device: any Device) -> [UInt8] {
    var writer = StateWriter()
    device.save(to: &writer)
    return writer.encoded()
}

public func reader(of state: [UInt8], for device: any Device) throws -> StateReader {
    try StateReader(section: device.stateName, version: device.stateVersion, payload: state[...])
}

public func loadState(_ state: [UInt8], into device: any Device) throws {
    try device.load(from: reader(of: state, for: device))
}

/// A small generator with a fixed sequence, for fuzzing (SplitMix64).
public struct Randomness: RandomNumberGenerator {
    private var state: UInt64

    public init(seed: UInt64) { state = seed }

    public mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var z = state
        z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
        z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
        return z ^ (z >> 31)
    }
}
