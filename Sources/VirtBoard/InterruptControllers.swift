import BatonRuntime
import InstructionSets

/// `-machine aia=`: which interrupt controllers the board has.
public enum AIA: String {
    /// A PLIC.
    case none
    /// APLICs that drive the harts by wire.
    case aplic
    /// APLICs that send messages, and a file for messages a hart and level.
    case aplicIMSIC = "aplic-imsic"
}

/// The board's interrupt controllers, and where they are.
public final class InterruptControllers {
    /// In the order in which they are added to the VM: what drives a hart
    /// before what drives that.
    public let devices: [any Device]
    let regions: [(device: any MMIODevice, start: UInt64, size: UInt64, name: String)]
    private let makeLine: (Int) -> InterruptLine

    /// - Parameter hasFirmware: without it every source is the supervisor's
    ///   from the start.
    init(_ aia: AIA, wiring: HartWiring, space: AddressSpace, hasFirmware: Bool) {
        guard aia != .none else {
            let plic = PLIC(contextCount: wiring.contextCount) { context, level in
                wiring.setExternalInterrupt(context: context, level)
            }
            devices = [plic]
            regions = [(plic, MemoryMap.plic, PLIC.size, "riscv.sifive.plic")]
            makeLine = { plic.line($0) }
            return
        }
        var devices: [any Device] = []
        var regions: [(device: any MMIODevice, start: UInt64, size: UInt64, name: String)] = []
        if aia == .aplicIMSIC {
            let files = wiring.harts.map { $0.makeInterruptFiles() }
            let machine = IMSIC(name: "imsic.m", files: files.map(\.machine))
            let supervisor = IMSIC(name: "imsic.s", files: files.map(\.supervisor))
            devices += [machine, supervisor]
            regions.append((machine, MemoryMap.imsicMachine, machine.size, "riscv.imsic"))
            regions.append((supervisor, MemoryMap.imsicSupervisor, supervisor.size, "riscv.imsic"))
        }
        func delivery(_ line: RISCVInterrupt) -> APLIC.Delivery {
            if aia == .aplic { return .wires { hart, level in wiring.harts[hart].setInterrupt(line, level) } }
            return .messages { address, identity in
                if !space.storeMessage(identity, at: address) {
                    Log.guestError("aplic: message \(identity) to \(Hex(address)): nothing there")
                }
            }
        }
        let count = wiring.harts.count
        let root = APLIC(name: "aplic.m", hartCount: count, delivery: delivery(.machineExternal))
        let child = APLIC(name: "aplic.s", hartCount: count, parent: root, delivery: delivery(.supervisorExternal))
        if !hasFirmware {
            root.afterReset = { [unowned root] in root.delegateAll(messagesTo: MemoryMap.imsicSupervisor) }
        }
        // The child first: at a reset the root gives it its sources anew.
        devices += [child, root]
        regions.append((root, MemoryMap.aplicMachine, APLIC.size, "riscv.aplic"))
        regions.append((child, MemoryMap.aplicSupervisor, APLIC.size, "riscv.aplic"))
        self.devices = devices
        self.regions = regions
        makeLine = { root.line($0) }
    }

    /// The wire of a source.
    func line(_ source: Int) -> InterruptLine { makeLine(source) }
}
