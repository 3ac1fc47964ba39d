import BatonRuntime

/// What a BAR is where the guest does not reach it directly: questions to the
/// device.
final class VFIORegionAccess: MMIODevice {
    private unowned let device: VFIOPCIDevice
    private let region: VFIORegion

    init(_ device: VFIOPCIDevice, _ region: VFIORegion) {
        self.device = device
        self.region = region
    }

    func mmioRead(offset: UInt64, width: Int) -> UInt64 {
        var value: UInt64 = 0
        let result = withUnsafeMutableBytes(of: &value) {
            device.transport.read(region, at: offset, into: UnsafeMutableRawBufferPointer(rebasing: $0[..<width]))
        }
        device.interrupts.acknowledge()
        guard result == 0 else {
            Log.guestError("\(device.stateName): read of \(width) bytes at \(Hex(offset)) failed")
            return UInt64.max >> UInt64(64 - 8 * width)
        }
        return UInt64(littleEndian: value)
    }

    func mmioWrite(offset: UInt64, width: Int, value: UInt64) {
        let result = withUnsafeBytes(of: value.littleEndian) {
            device.transport.write(region, at: offset, from: UnsafeRawBufferPointer(rebasing: $0[..<width]))
        }
        if result != 0 {
            Log.guestError("\(device.stateName): write of \(width) bytes at \(Hex(offset)) failed")
        }
        device.interrupts.acknowledge()
    }
}
