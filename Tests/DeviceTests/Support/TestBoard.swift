import BatonRuntime
import RISCV
import TestSupport
import VirtBoard

/// The whole board, with 64 MiB, that a test looks at from outside.
final class TestBoard {
    let vm: VirtualMachine
    let ram: RAMBlock
    let board: VirtBoard
    let accelerator: SoftwareAccelerator
    var harts: [Hart] { accelerator.harts }
    var rom: RAMBlock? { vm.addressSpace.ramRange(containing: 0x1000)?.block }

    init(
        hartCount: Int = 1, memory: Int = 64 << 20, serial: Chardev? = nil, flash: [BlockBackend] = [],
        aia: AIA = .none, _ setUp: (inout BootFiles) -> Void = { _ in }
    ) throws {
        DescriptorLimit.raise()
        vm = try VirtualMachine()
        ram = try TestMachine.block("ram", memory)
        accelerator = try SoftwareAccelerator(vm: vm)
        try vm.setAccelerator(accelerator)
        var configuration = VirtBoard.Configuration(ram: ram, allocate: TestMachine.block)
        configuration.hartCount = hartCount
        setUp(&configuration.files)
        configuration.serial = serial
        configuration.aia = aia
        configuration.flash = flash
        board = try VirtBoard(vm: vm, accelerator: accelerator, configuration: configuration)
    }

    func word<T: FixedWidthInteger>(_ address: UInt64, _ type: T.Type) -> T? {
        vm.addressSpace.dma(address, length: UInt64(MemoryLayout<T>.size), writing: false)?.loadUnaligned(as: T.self)
    }
}
