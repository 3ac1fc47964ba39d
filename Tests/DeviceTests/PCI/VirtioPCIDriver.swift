import BatonRuntime
import Testing
import Virtio

/// What a guest's virtio-pci driver does: finds the structures by their
/// capabilities, and sets up device and queues.
final class VirtioPCIDriver {
    let pci: PCITestBus
    let slot: Int
    let device: VirtioPCI
    private var structures: [UInt8: UInt64] = [:]
    private(set) var accessCapability = 0
    private var notifyMultiplier: UInt64 = 0
    var machine: TestMachine { pci.machine }

    static let registers = PCITestBus.high
    static let table = PCITestBus.window

    init(_ pci: PCITestBus, _ device: VirtioPCI, slot: Int = 1) throws {
        self.pci = pci
        self.slot = slot
        self.device = device
        try pci.plug(device, slot)
        try pci.machine.vm.add(device.device)
        pci.machine.vm.resetDevices()
        for part in pci.machine.vm.devices { part.resume() }
        findStructures()
    }

    /// Places the BARs and reads the capabilities.
    func findStructures() {
        pci.write(slot, 0x14, Self.table)
        pci.write(slot, 0x20, 0)
        pci.write(slot, 0x24, Self.registers >> 32)
        pci.enable(slot)
        var at = Int(pci.read(slot, 0x34, 1))
        while at != 0 {
            if pci.read(slot, at, 1) == 9 {
                let type = UInt8(pci.read(slot, at + 3, 1))
                if type == 5 { accessCapability = at }
                if type == 2 { notifyMultiplier = pci.read(slot, at + 16) }
                structures[type] = Self.registers + pci.read(slot, at + 8)
                #expect(type == 5 || pci.read(slot, at + 4, 1) == 4)
            }
            at = Int(pci.read(slot, at + 1, 1))
        }
    }

    private func address(_ type: UInt8, _ offset: UInt64) -> UInt64 { (structures[type] ?? 0) + offset }

    func read(_ offset: UInt64, _ width: Int) -> UInt64 {
        pci.space.mmioRead(address(1, offset), width: width) ?? 0xdead
    }
    func write(_ offset: UInt64, _ value: UInt64, _ width: Int) {
        #expect(pci.space.mmioWrite(address(1, offset), width: width, value: value))
    }
    func readStatus() -> UInt64? { pci.space.mmioRead(address(3, 0), width: 1) }
    func config(_ offset: UInt64, _ width: Int) -> UInt64? { pci.space.mmioRead(address(4, offset), width: width) }
    func notify(_ offset: UInt64) {
        #expect(pci.space.mmioWrite(address(2, offset * notifyMultiplier), width: 2, value: 0))
    }

    var status: UInt64 { read(20, 1) }

    func negotiate(_ features: UInt64 = GuestDriver.common) {
        for value: UInt64 in [0, 1, 3] { write(20, value, 1) }
        for half: UInt64 in [0, 1] {
            write(8, half, 4)
            write(12, features >> (32 * half) & 0xffff_ffff, 4)
        }
        write(20, 11, 1)
    }

    func setVector(_ vector: Int, data: UInt64) {
        let entry = Self.table + UInt64(vector) * 16
        #expect(pci.space.mmioWrite(entry, width: 8, value: PCITestBus.doorbell))
        #expect(pci.space.mmioWrite(entry + 8, width: 8, value: data))
    }

    /// Negotiates and sets up every queue, with a vector of its own each when
    /// MSI-X is wanted.
    func start(features: UInt64 = GuestDriver.common, size: UInt16 = 8, msix: Bool) -> [GuestQueue] {
        negotiate(features)
        if msix { pci.write(slot, (device.msix?.offset ?? 0) + 2, 0x8000, 2) }
        var queues: [GuestQueue] = []
        for index in 0..<Int(read(18, 2)) {
            write(22, UInt64(index), 2)
            let offset = read(30, 2)
            let queue = GuestQueue(
                machine, index: index, size: size, base: TestMachine.ramBase + UInt64(index + 1) * 0x10000,
                eventIndex: features & 1 << 29 != 0
            ) { [unowned self] in notify(offset) }
            write(24, UInt64(size), 2)
            if msix {
                setVector(index + 1, data: UInt64(0x40 + index))
                write(26, UInt64(index + 1), 2)
            }
            write(32, queue.table, 8)
            for (at, address) in [(UInt64(40), queue.available), (48, queue.used)] {
                write(at, address & 0xffff_ffff, 4)
                write(at + 4, address >> 32, 4)
            }
            write(28, 1, 2)
            queues.append(queue)
        }
        write(20, 15, 1)
        return queues
    }
}
