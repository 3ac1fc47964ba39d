import BatonRuntime
import CKVM

/// The state of an interrupt controller in the kernel: `struct kvm_irqchip` as bytes.
struct ChipBytes {
    /// The number of the chip and a word of padding come first.
    private static let head = 8
    private static let size = head + 512

    private var bytes = [UInt8](repeating: 0, count: ChipBytes.size)

    init(_ chip: Int32) { store(UInt32(chip), -ChipBytes.head) }

    func load<T: FixedWidthInteger>(_ type: T.Type, _ offset: Int) -> T {
        bytes.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: ChipBytes.head + offset, as: type) }
    }

    mutating func store<T: FixedWidthInteger>(_ value: T, _ offset: Int) {
        bytes.withUnsafeMutableBytes { $0.storeBytes(of: value, toByteOffset: ChipBytes.head + offset, as: T.self) }
    }

    mutating func call(_ request: UInt, _ vm: KVMDescriptor) -> Int32 {
        bytes.withUnsafeMutableBytes { vm.call(request, bytes: $0) }
    }
}

/// What is the same for the devices in the kernel: after power-on they are as KVM makes them.
class KVMSystemDevice {
    unowned let accelerator: KVMAccelerator
    var vm: KVMDescriptor { accelerator.system.vm }

    init(_ accelerator: KVMAccelerator) { self.accelerator = accelerator }

    func check(_ result: Int32, _ name: String) {
        guard result < 0 else { return }
        accelerator.note(failure: .system("\(name) failed", errno: -result))
    }
}

/// The I/O APIC, an Intel 82093AA with 24 inputs.
final class KVMIOAPIC: KVMSystemDevice, Device {
    let stateName = "ioapic"
    private let initial: ChipBytes

    // Offsets in struct kvm_ioapic_state.
    private static let (base, select, id, irr, table) = (0, 8, 12, 16, 24)

    override init(_ accelerator: KVMAccelerator) {
        var chip = ChipBytes(KVM_IRQCHIP_IOAPIC)
        _ = chip.call(CKVM_GET_IRQCHIP, accelerator.system.vm)
        initial = chip
        super.init(accelerator)
    }

    func reset() {
        var chip = initial
        check(chip.call(CKVM_SET_IRQCHIP, vm), "KVM_SET_IRQCHIP of the I/O APIC")
        accelerator.interrupts.repeatLevels()
    }

    func save(to writer: inout StateWriter) {
        var chip = ChipBytes(KVM_IRQCHIP_IOAPIC)
        check(chip.call(CKVM_GET_IRQCHIP, vm), "KVM_GET_IRQCHIP of the I/O APIC")
        writer.put("base", chip.load(UInt64.self, KVMIOAPIC.base))
        writer.put("select", UInt64(chip.load(UInt32.self, KVMIOAPIC.select)))
        writer.put("id", UInt64(chip.load(UInt32.self, KVMIOAPIC.id)))
        writer.put("irr", UInt64(chip.load(UInt32.self, KVMIOAPIC.irr)))
        let entries = (0..<KVMInterrupts.pinCount).map { chip.load(UInt64.self, KVMIOAPIC.table + 8 * $0) }
        writer.put("redirection", entries)
        writer.put("lines", accelerator.interrupts.levels)
    }

    func loader(of reader: StateReader) throws(VMMError) -> () -> Void {
        let pins = KVMInterrupts.pinCount
        var chip = ChipBytes(KVM_IRQCHIP_IOAPIC)
        let base = try reader.unsigned("base")
        guard base == initial.load(UInt64.self, KVMIOAPIC.base) else {
            throw VMMError("field 'base' of section '\(reader.section)' is \(Hex(base)), where no I/O APIC is")
        }
        chip.store(base, KVMIOAPIC.base)
        chip.store(UInt32(try reader.unsigned("select", in: 0...255)), KVMIOAPIC.select)
        chip.store(UInt32(try reader.unsigned("id", in: 0...255)), KVMIOAPIC.id)
        chip.store(UInt32(try reader.unsigned("irr", in: 0...(1 << UInt64(pins) - 1))), KVMIOAPIC.irr)
        for (place, entry) in try reader.array("redirection", count: pins...pins).enumerated() {
            chip.store(entry, KVMIOAPIC.table + 8 * place)
        }
        let levels = try reader.unsigned("lines", in: 0...(1 << UInt64(pins) - 1))
        try reader.finish()
        return { [self] in
            var chip = chip
            accelerator.interrupts.restore(levels: levels)
            check(chip.call(CKVM_SET_IRQCHIP, vm), "KVM_SET_IRQCHIP of the I/O APIC")
        }
    }
}

/// The two 8259A. Its section comes after that of the I/O APIC, which has the levels of the wires.
final class KVMPIC: KVMSystemDevice, Device {
    let stateName = "pic"
    private let initial: [ChipBytes]

    private static let chips = [(KVM_IRQCHIP_PIC_MASTER, "master"), (KVM_IRQCHIP_PIC_SLAVE, "slave")]
    /// The fields of struct kvm_pic_state, a byte each, with the highest value of each.
    private static let limits: [(name: String, limit: UInt8)] = [
        ("last-irr", 255), ("irr", 255), ("imr", 255), ("isr", 255), ("priority-add", 7), ("irq-base", 255),
        ("read-reg-select", 1), ("poll", 255), ("special-mask", 255), ("init-state", 3), ("auto-eoi", 255),
        ("rotate-on-auto-eoi", 255), ("special-fully-nested-mode", 255), ("init4", 1), ("elcr", 255),
        ("elcr-mask", 255),
    ]

    override init(_ accelerator: KVMAccelerator) {
        initial = KVMPIC.chips.map { number, _ in
            var chip = ChipBytes(Int32(number))
            _ = chip.call(CKVM_GET_IRQCHIP, accelerator.system.vm)
            return chip
        }
        super.init(accelerator)
    }

    private func set(_ chips: [ChipBytes]) {
        for (place, (_, name)) in KVMPIC.chips.enumerated() {
            var chip = chips[place]
            check(chip.call(CKVM_SET_IRQCHIP, vm), "KVM_SET_IRQCHIP of the \(name) PIC")
        }
    }

    func reset() { set(initial) }

    func save(to writer: inout StateWriter) {
        for (number, name) in KVMPIC.chips {
            var chip = ChipBytes(Int32(number))
            check(chip.call(CKVM_GET_IRQCHIP, vm), "KVM_GET_IRQCHIP of the \(name) PIC")
            writer.put(name, bytes: KVMPIC.limits.indices.map { chip.load(UInt8.self, $0) })
        }
    }

    func loader(of reader: StateReader) throws(VMMError) -> () -> Void {
        var chips: [ChipBytes] = []
        let count = KVMPIC.limits.count
        for (number, name) in KVMPIC.chips {
            var chip = ChipBytes(Int32(number))
            for (place, byte) in try reader.bytes(name, count: count...count).enumerated() {
                guard byte <= KVMPIC.limits[place].limit else {
                    throw VMMError(
                        "field '\(name)' of section '\(reader.section)' has \(byte) as \(KVMPIC.limits[place].name)")
                }
                chip.store(byte, place)
            }
            chips.append(chip)
        }
        try reader.finish()
        return { [self] in set(chips) }
    }
}
