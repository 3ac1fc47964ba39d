import BatonRuntime
import CKVM
import Glibc

/// Tells KVM what of the address space is memory.
final class KVMMemory: MemoryListener {
    private struct Slot {
        let start: UInt64
        let size: UInt64
        let host: UnsafeMutableRawPointer
        let readOnly: Bool
        /// Of a device, which may take it away.
        let isDevice: Bool
        let number: UInt32
        /// Whether KVM has it: not while a device answers loads from it.
        var isPresent = true
    }

    /// KVM_MEM_MAX_NR_PAGES of Linux' include/linux/kvm_host.h, in bytes.
    private static let largestSlot: UInt64 = ((1 << 31) - 1) * 4096

    private let system: KVMSystem
    private unowned let space: AddressSpace
    private var slots: [Slot] = []
    /// The first thing that KVM refused: no guest may run then.
    private(set) var failure: VMMError?
    /// A device's memory that KVM does not take is reached by exits, which is told once.
    private var hasWarned = false

    init(system: KVMSystem, space: AddressSpace) {
        (self.system, self.space) = (system, space)
    }

    func mapped(_ range: RAMRange) {
        add(start: range.start, size: range.size, host: range.host, readOnly: range.readOnly, isDevice: false)
    }

    func deviceMemoryChanged() {
        for index in slots.indices where !slots[index].isDevice {
            let isWanted = !space.deviceAnswersLoads(at: slots[index].start)
            guard isWanted != slots[index].isPresent else { continue }
            slots[index].isPresent = isWanted
            tell(slots[index], size: isWanted ? slots[index].size : 0)
        }
        let wanted = space.deviceMemory
        for slot in slots where slot.isDevice {
            guard !wanted.contains(where: { KVMMemory.matches(slot, $0) }) else { continue }
            slots.removeAll { $0.number == slot.number }
            tell(slot, size: 0)
        }
        for range in wanted where !slots.contains(where: { $0.isDevice && KVMMemory.matches($0, range) }) {
            add(start: range.start, size: range.size, host: range.host, readOnly: range.readOnly, isDevice: true)
        }
    }

    private static func matches(_ slot: Slot, _ range: AddressSpace.DeviceMemory) -> Bool {
        slot.start == range.start && slot.size == range.size && slot.host == range.host
            && slot.readOnly == range.readOnly
    }

    private func add(start: UInt64, size: UInt64, host: UnsafeMutableRawPointer, readOnly: Bool, isDevice: Bool) {
        let used = Set(slots.map(\.number))
        guard let number = (0..<UInt32(system.maximumSlots)).first(where: { !used.contains($0) }) else {
            let text = "KVM has no memory slot left for the memory at \(Hex(start)) (\(system.maximumSlots) are in use)"
            let hint = "Give the guest fewer pieces of memory, or fewer devices with memory of their own."
            return refuse(VMMError(text, hint: hint), isDevice: isDevice)
        }
        let slot = Slot(
            start: start, size: size, host: host, readOnly: readOnly, isDevice: isDevice, number: number)
        if tell(slot, size: size) { slots.append(slot) }
    }

    /// A guest does without a device's memory: the device is called for each access in its place.
    private func refuse(_ error: VMMError, isDevice: Bool) {
        guard isDevice else {
            failure = failure ?? error
            return
        }
        if !hasWarned { Report.warning("\(error.message); the device's memory is slow") }
        hasWarned = true
    }

    @discardableResult
    private func tell(_ slot: Slot, size: UInt64) -> Bool {
        var region = kvm_userspace_memory_region()
        region.slot = slot.number
        // KVM_MEM_READONLY: stores exit as if to a device.
        region.flags = slot.readOnly ? 1 << 1 : 0
        region.guest_phys_addr = slot.start
        region.memory_size = size
        region.userspace_addr = UInt64(UInt(bitPattern: slot.host))
        let result = system.vm.call(CKVM_SET_USER_MEMORY_REGION, &region)
        if result == -EINVAL, size > KVMMemory.largestSlot {
            // By KVM this is one of many things that may be wrong. QEMU's text for memory that the host cannot give.
            refuse(
                VMMError(
                    "cannot set up guest memory: KVM takes at most \(KVMMemory.largestSlot) bytes in one piece, and not "
                        + "\(size)", hint: "Give less with -m."), isDevice: slot.isDevice)
        } else if result < 0 {
            let text = "KVM_SET_USER_MEMORY_REGION of \(slot.size) bytes at \(Hex(slot.start)) failed"
            // What cannot be taken away would stay in the guest's reach.
            refuse(.system(text, errno: -result), isDevice: slot.isDevice && size > 0)
        }
        return result >= 0
    }
}

/// Writes that are counted on an eventfd: ioeventfds.
struct KVMDoorbells {
    let system: KVMSystem

    // Of KVM_IOEVENTFD_FLAG_….
    private static let datamatch: UInt32 = 1
    private static let port: UInt32 = 2
    private static let deassign: UInt32 = 4

    func add(_ doorbell: Doorbell) -> Bool {
        guard [0, 1, 2, 4, 8].contains(doorbell.width),
            doorbell.width != 0 || (doorbell.value == nil && system.hasAnyLengthDoorbells)
        else { return false }
        return tell(doorbell, flags: 0)
    }

    func remove(_ doorbell: Doorbell) { _ = tell(doorbell, flags: KVMDoorbells.deassign) }

    private func tell(_ doorbell: Doorbell, flags: UInt32) -> Bool {
        var request = kvm_ioeventfd()
        request.datamatch = doorbell.value ?? 0
        request.addr = doorbell.address
        request.len = UInt32(doorbell.width)
        request.fd = doorbell.fd
        request.flags = flags | (doorbell.isPort ? KVMDoorbells.port : 0)
        if doorbell.value != nil { request.flags |= KVMDoorbells.datamatch }
        return system.vm.call(CKVM_IOEVENTFD, &request) >= 0
    }
}
