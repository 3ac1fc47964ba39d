import BatonRuntime
import RISCV
import TestSupport
import Testing

/// A slice ends in time whatever its instructions do. Counted, not timed.
@Suite("Slices", .enabled(if: GuestBuilder.isAvailable, "needs the toolchain's clang and lld"))
struct SliceTests {
    /// A device that is slow to answer, at first.
    private final class SlowDevice: MMIODevice {
        static let address: UInt64 = 0x1000_0000
        private(set) var accesses = 0
        private func work() {
            accesses += 1
            // Not for ever, or a slice that does not end would never fail.
            guard accesses <= 400 else { return }
            let end = EventLoop.now + 1_000_000
            while EventLoop.now < end {}
        }
        func mmioRead(offset: UInt64, width: Int) -> UInt64 {
            work()
            return 0
        }
        func mmioWrite(offset: UInt64, width: Int, value: UInt64) { work() }
    }

    @Test("of a guest that only speaks to a slow device", arguments: ["ld t1, (t0)", "sd zero, (t0)"])
    func slowDevice(access: String) throws {
        let machine = try TestMachine(
            assembly: """
                    li t0, \(SlowDevice.address)
                    li t2, 2000
                1:  addi t2, t2, -1
                    bnez t2, 1b
                2:  \(access)
                    j 2b
                """)
        let device = SlowDevice()
        try machine.vm.addressSpace.map(device, at: SlowDevice.address, size: 4096, name: "slow")
        _ = machine.accelerator.runSlice()
        var before = device.accesses
        for _ in 0..<5 {
            let result = machine.accelerator.runSlice()
            guard case .busy = result else { throw TestError("the guest waits for nothing") }
            #expect(device.accesses - before <= 8, "\(device.accesses - before) slow accesses in a slice")
            before = device.accesses
        }
    }

    @Test("of a guest that has the firmware write to a slow console")
    func slowConsole() throws {
        final class Console: SBIConsole {
            var calls = 0
            func write(_ bytes: UnsafeRawBufferPointer) {
                calls += 1
                guard calls <= 400 else { return }
                let end = EventLoop.now + 1_000_000
                while EventLoop.now < end {}
            }
            func read(into buffer: UnsafeMutableRawBufferPointer) -> Int { 0 }
        }
        let machine = try TestMachine(
            sbi: true,
            assembly: """
                1:  li a7, 0x4442434e
                    li a6, 0
                    li a0, 65536
                    li a1, 0x80200000
                    li a2, 0
                    ecall
                    j 1b
                """)
        let console = Console()
        machine.accelerator.sbi?.console = console
        _ = machine.accelerator.runSlice()
        var before = console.calls
        for _ in 0..<5 {
            _ = machine.accelerator.runSlice()
            #expect(console.calls > before && console.calls - before <= 8)
            before = console.calls
        }
    }

    @Test("instructions are counted as ever")
    func counts() throws {
        // The slices of this end early, and no instruction may be counted twice or be lost.
        let machine = try TestMachine(
            assembly: """
                    li t0, \(SlowDevice.address)
                    li t2, 100
                    csrr s0, minstret
                1:  ld t1, (t0)
                    fence.i
                    addi t2, t2, -1
                    bnez t2, 1b
                    csrr s1, minstret
                    sub s1, s1, s0
                    \(TestMachine.finish("s1"))
                """)
        let device = SlowDevice()
        try machine.vm.addressSpace.map(device, at: SlowDevice.address, size: 4096, name: "slow")
        #expect(try machine.runUntilDone() == 401)
    }
}
