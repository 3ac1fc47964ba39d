import BatonRuntime

/// Devices whose memory is in one address space.
public final class VFIOPlacement {
    private var devices: [VFIOPCIDevice] = []

    public init() {}

    /// Adds a device that has been plugged.
    public func add(_ device: VFIOPCIDevice) { devices.append(device) }

    /// Puts what devices have mapped where their BARs are now. One BAR may
    /// have gone to where another was, of any device: first everything that
    /// has moved is taken away.
    func place(in space: AddressSpace) {
        for device in devices { device.memory.takeAway(from: space, movedOnly: true) }
        for device in devices { device.memory.place(in: space) }
    }
}
