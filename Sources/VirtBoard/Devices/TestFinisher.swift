import BatonRuntime

/// SiFive's test finisher, the `syscon` behind power-off and reboot: a write
/// of 0x5555, 0x7777, or 0x3333 with an exit status above it.
public final class TestFinisher: MMIODevice, Device {
    public let stateName = "test"
    public static let size: UInt64 = 0x1000
    private weak var machine: (any GuestRequests)?

    public init(machine: any GuestRequests) { self.machine = machine }

    public func accepts(offset: UInt64, width: Int) -> Bool { width == 2 || width == 4 }

    public func mmioRead(offset: UInt64, width: Int) -> UInt64 { 0 }

    public func mmioWrite(offset: UInt64, width: Int, value: UInt64) {
        if offset == 0 {
            switch value & 0xffff {
            case 0x5555: machine?.guestRequestedShutdown(status: 0); return
            case 0x3333: machine?.guestRequestedShutdown(status: Int32(value >> 16 & 0xffff)); return
            case 0x7777: machine?.guestRequestedReset(); return
            default: break
            }
        }
        Log.guestError("test: write of \(Hex(value)) (\(width) bytes) at \(Hex(offset))")
    }

    public func reset() {}
    public func save(to writer: inout StateWriter) {}
    public func loader(of reader: StateReader) throws(VMMError) -> () -> Void {
        try reader.finish()
        return {}
    }
}
