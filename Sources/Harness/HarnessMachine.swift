import Foundation
import HarnessSystem

/// The machine that the rows run on: its accelerator, its board, and a guest for it.
public struct HarnessMachine: Sendable {
    /// As `-accel` names it.
    public let accelerator: String
    let guest: any GuestProgram.Type
    /// The board and what the guest is started by, before the guest's file.
    let arguments: [String]
    /// The guest-physical address of the first byte of the memory backend `ram`.
    let ramStart: UInt64
    /// A field of a device's or a CPU's section, by its name, without what differs from one save to the next while
    /// nothing runs, as time goes on.
    let lasting: @Sendable (String, ArraySlice<UInt8>) -> [UInt8]

    /// The riscv64 board, interpreted.
    public static let tcg = HarnessMachine(
        accelerator: "tcg", guest: CountingProgram.self,
        arguments: ["-machine", "virt,memory-backend=ram", "-bios", "none"], ramStart: 0x8000_0000,
        lasting: { name, field in
            var bytes = Array(field)
            // A hart's pending timer interrupts: a timer may come due.
            if name == "mip", !bytes.isEmpty { bytes[0] &= ~(1 << 5 | 1 << 7) }
            return bytes
        })

    /// The x86-64 board `microvm` on the host's KVM.
    public static let kvm = HarnessMachine(
        accelerator: "kvm", guest: X86CountingProgram.self,
        arguments: ["-machine", "microvm,memory-backend=ram", "-accel", "kvm"], ramStart: 0,
        lasting: { name, field in
            switch name {
            case "host-tsc", "ages", "clock", "host-time": return []
            case "lapic":
                // Its timer's current count.
                var bytes = Array(field)
                let count = min(0x390, bytes.count)..<min(0x394, bytes.count)
                bytes.replaceSubrange(count, with: repeatElement(0, count: count.count))
                return bytes
            default: return Array(field)
            }
        })

    public static let all = [tcg, kvm]

    /// Why it cannot be used on this host; nil where it can.
    public var obstacle: String? {
        guard accelerator == "kvm" else { return nil }
        #if arch(x86_64)
        switch harness_try_kvm() {
        case 0: return nil
        case let error where error < 0: return "/dev/kvm has version \(-error) of its interface, not 12"
        case let error: return "/dev/kvm cannot be used: \(String(cString: strerror(error)))"
        }
        #else
        return "/dev/kvm runs no x86-64 guests: this host's processor is another"
        #endif
    }
}
