/// A guest of the harness: a bare-metal program that counts, and watches that
/// nothing of its machine changes behind its back.
///
/// It keeps a page for whoever looks from outside, as the tests' counting guest does:
///
///     +0x00  magic "BATONCNT"
///     +0x08  the counter, stored last
///     +0x10  the checksum if the counter is even, at +0x18 if it is odd
///     +0x20  0, or what it found changed (`Finding`)
///     +0x28  how many lines it has written
///
/// What follows on the page is the program's own. After every `stepsPerLine` counts it echoes what the serial port has
/// received, looks after its registers and devices, writes a line, and sleeps until a timer wakes it.
protocol GuestProgram: Sendable {
    /// Guest-physical.
    static var page: UInt64 { get }
    static var stepsPerLine: UInt64 { get }
    /// RAM that the guest fills once, and never looks at: 1 MiB.
    static var filled: Range<UInt64> { get }
    /// The file that `-kernel` is given.
    static func image() -> [UInt8]
}

/// What all of them have in common.
enum Counting {
    static let magic: UInt64 = 0x544e_434e_4f54_4142
    static let multiplier: UInt64 = 6_364_136_223_846_793_005
    static let increment: UInt64 = 1_442_695_040_888_963_407

    /// A value that a register is to keep.
    static func pattern(_ index: Int) -> UInt64 { multiplier &* UInt64(index + 3) &+ increment }

    /// What the checksum must be after `steps` counts: the sequence's power,
    /// computed by doubling.
    static func checksum(after steps: UInt64) -> UInt64 {
        var factor = multiplier, summand = increment, value: UInt64 = 0, left = steps
        while left > 0 {
            if left & 1 == 1 { value = value &* factor &+ summand }
            summand = (factor &+ 1) &* summand
            factor = factor &* factor
            left >>= 1
        }
        return value
    }
}

/// What a guest found changed.
enum Finding: UInt64, CaseIterable {
    case counter = 1, registers, floatRegisters, controlRegisters, time, serialPort, interruptController, virtio
    /// Only where exceptions have handlers.
    case exception
    /// Only of guests that use a disk, or look after memory that they have filled.
    case disk, memory

    var text: String {
        switch self {
        case .counter: "its counter in RAM"
        case .registers: "its integer registers"
        case .floatRegisters: "its floating-point registers"
        case .controlRegisters: "its control registers"
        case .time: "the clock, which went back or jumped"
        case .serialPort: "the registers of its serial port"
        case .interruptController: "its interrupt controllers, or how many interrupts came"
        case .virtio: "the status of its virtio devices"
        case .exception: "something that raises an exception"
        case .disk: "what it had written to its disk, or the status of a request"
        case .memory: "memory that it had filled"
        }
    }
}
