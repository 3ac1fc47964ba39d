import BatonRuntime
import CKVM
@testable import KVM

/// The section of a CPU under KVM, as far as it is read without the kernel.
extension Target {
    static let kvmState = Target(
        name: "kvm-state",
        seeds: { [[0]] + (0..<64).map { [1, $0, 0, 0, 0, 1, 1] } },
        make: {
            var sample = CPUState()
            sample.regs.rflags = 2
            sample.sregs.cr0 = 0x8000_0011
            sample.sregs.cr4 = 0x20
            sample.sregs.efer = 0x500
            sample.xsave = [UInt8](repeating: 0, count: 4096)
            sample.lapic = [UInt8](repeating: 0, count: CPUState.lapicSize)
            sample.xcrs = [(0, 7)]
            sample.registers = [(0x10, 5), (0xc000_0080, 0x500)]
            sample.tscOffset = 17
            var writer = StateWriter()
            sample.save(to: &writer)
            let base = writer.encoded()
            return { bytes in
                var input = Input(bytes)
                var state = EditableState(base)
                for _ in 0..<input.byte() % 12 { state.edit(&input) }
                guard
                    let reader = try? StateReader(section: "cpu0", version: 1, payload: state.bytes[...]),
                    let taken = try? CPUState(reader)
                else { return }
                var once = StateWriter()
                taken.save(to: &once)
                let again: CPUState
                do throws(VMMError) {
                    again = try CPUState(StateReader(section: "cpu0", version: 1, payload: once.encoded()[...]))
                } catch { found("what was taken is refused when it was saved: \(error.message)") }
                var twice = StateWriter()
                again.save(to: &twice)
                expect(once.encoded() == twice.encoded(), "a CPU's state is another after a second load")
            }
        })
}
