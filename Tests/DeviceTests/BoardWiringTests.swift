import BatonRuntime
import RISCV
import Testing
import VirtBoard

/// The wires of the board, through its addresses.
@Suite struct BoardWiringTests {
    private func write(_ board: TestBoard, _ address: UInt64, _ value: UInt64, width: Int = 4) {
        #expect(board.vm.addressSpace.mmioWrite(address, width: width, value: value))
    }

    @Test func clintReachesEachHart() throws {
        let board = try TestBoard(hartCount: 2)
        board.vm.resetDevices()
        let harts = board.harts
        write(board, 0x200_0004, 1)
        #expect(!harts[0].isPending(.machineSoftware) && harts[1].isPending(.machineSoftware))
        write(board, 0x200_4008, 0x1234, width: 8)
        #expect(harts[1].mtimecmp == 0x1234 && harts[0].mtimecmp != 0x1234)
        board.vm.resetDevices()
        #expect(!harts[1].isPending(.machineSoftware))
    }

    @Test func theUARTsInterruptReachesTheContextThatEnablesIt() throws {
        let board = try TestBoard(hartCount: 2)
        board.vm.resetDevices()
        let harts = board.harts
        write(board, 0xc00_0000 + 10 * 4, 1)
        // Context 3: S-mode of hart 1.
        write(board, 0xc00_2000 + 3 * 0x80, 1 << 10)
        write(board, 0x1000_0001, 2, width: 1)
        #expect(harts[1].isPending(.supervisorExternal))
        #expect(!harts[1].isPending(.machineExternal) && !harts[0].isPending(.supervisorExternal))
        #expect(board.vm.addressSpace.mmioRead(0xc20_3004, width: 4) == 10)
        #expect(!harts[1].isPending(.supervisorExternal))
        board.vm.resetDevices()
        #expect(!harts[1].isPending(.supervisorExternal))
    }

    @Test func theFinisherEndsTheMachineWithItsStatus() throws {
        let board = try TestBoard()
        write(board, 0x10_0000, 7 << 16 | 0x3333)
        #expect(board.vm.run() == 7)
    }

    @Test func deviceNamesAreTheSameInEveryStart() throws {
        let names = try TestBoard(hartCount: 2).vm.devices.map(\.stateName)
        #expect(
            names == [
                "loader", "cpu0", "cpu1", "test", "rtc", "serial0", "virtio-mmio.0", "virtio-mmio.1", "virtio-mmio.2",
                "virtio-mmio.3", "virtio-mmio.4", "virtio-mmio.5", "virtio-mmio.6", "virtio-mmio.7", "pcie.0",
                "pcie.0/00.0/gpex-root", "clint", "plic", "virt.flash0", "virt.flash1", "fw_cfg",
            ])
    }
}
