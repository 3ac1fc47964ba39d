import BatonRuntime
import PCI

/// QEMU's `pvpanic-pci` (`docs/specs/pvpanic.rst`): the register of `pvpanic` in BAR 0, for machines without ports.
public final class PVPanicPCI: PCIFunction {
    /// Bytes that answer; PCI knows no BAR of memory that is smaller than 16.
    private static let registersSize: UInt64 = 2

    private let register: PVPanic

    /// - Parameter events: what the guest is told it may say.
    public init(vm: VirtualMachine, id: String?, events: PVPanic.Events = .all) {
        register = PVPanic(name: "pvpanic-pci", vm: vm, events: events)
        super.init(
            vm: vm, model: "pvpanic-pci", id: id,
            identity: PCIIdentity(
                vendor: 0x1b36, device: 0x0011, classCode: 0x0880, revision: 1,
                subsystemVendor: ECAMHostBridge.subsystem.vendor, subsystem: ECAMHostBridge.subsystem.device,
                interruptPin: 0))
        let bar = PCIBar(index: 0, space: .memory32, size: 16)
        bar.add(registers: register, size: PVPanicPCI.registersSize)
        add(bar)
    }

    public override func resetFunction() { register.reset() }
    public override func pause() { register.pause() }
    public override func resume() { register.resume() }

    public override func saveFunction(to writer: inout StateWriter) { register.saveFields(to: &writer) }
    public override func loadFunction(from reader: StateReader) throws(VMMError) -> () -> Void {
        try register.fieldsLoader(of: reader)
    }
}
