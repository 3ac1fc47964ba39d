import BatonRuntime

/// QEMU's `isa-debug-exit`: a write ends the VMM with the exit status `value * 2 + 1`, which is never 0.
///
/// As in current versions of QEMU that is a guest's power-off with a status, so that `-no-shutdown` keeps the VMM.
public final class ISADebugExit: MMIODevice, Device {
    public let stateName: String
    /// Defaults of `iobase=` and `iosize=`.
    public static let defaultPort: UInt64 = 0x501
    public static let defaultPortCount: UInt64 = 2
    private weak var machine: (any GuestRequests)?

    /// - Parameter name: unique among devices.
    public init(name: String = "isa-debug-exit", machine: any GuestRequests) {
        stateName = name
        self.machine = machine
    }

    public func accepts(offset: UInt64, width: Int) -> Bool { width <= 4 }

    public func mmioRead(offset: UInt64, width: Int) -> UInt64 { 0 }

    public func mmioWrite(offset: UInt64, width: Int, value: UInt64) {
        // The kernel gives whoever waits for the process the lowest eight bits.
        machine?.guestRequestedShutdown(status: Int32(truncatingIfNeeded: value << 1 | 1))
    }

    // MARK: Device

    public func reset() {}
    public func save(to writer: inout StateWriter) {}
    public func loader(of reader: StateReader) throws(VMMError) -> () -> Void {
        try reader.finish()
        return {}
    }
}
