import BatonRuntime
import Firmware
import Glibc
@testable import VirtBoard

/// Kernels and firmware of the riscv64 board: placed or refused, and stored in memory.
extension Target {
    static let virtImages = Target(
        name: "image-virt",
        seeds: {
            let image = SampleKernels.linuxImage()
            let elf = SampleKernels.elf(machine: 243, address: 0x8020_0000)
            return [image, elf, Array("flat".utf8)].flatMap { kernel in (0..<4).map { [$0] + kernel } }
        },
        make: {
            let space = AddressSpace()
            let ram = try makeRAM("ram", 8 << 20)
            let rom = try makeRAM("rom", 0xf000)
            try space.map(ram, at: 0x8000_0000, size: UInt64(ram.usedLength))
            try space.map(rom, at: 0x1000, size: UInt64(rom.usedLength), readOnly: true)
            let file = try MemoryFile("image")
            let initrd = try MemoryFile("initrd")
            return { bytes in
                var input = Input(bytes)
                let kind = input.byte()
                file.write(input.rest())
                initrd.write([1, 2, 3])
                var files = BootFiles()
                if kind & 1 == 0 { files.kernel = file.path }
                if kind & 2 != 0 { files.firmware = .file(file.path) } else if kind & 4 != 0 { files.firmware = .none }
                if kind & 1 == 0, kind & 8 != 0 { files.initrd = initrd.path }
                if kind & 1 == 0, kind & 16 != 0 { files.commandLine = "console=ttyS0" }
                let plan: BootPlan
                do throws(VMMError) {
                    plan = try BootPlan(
                        files: files, memorySize: UInt64(ram.usedLength), flashIsFilled: kind & 32 != 0
                    ) {
                        BoardTree(
                            hartCount: 1, memorySize: UInt64(ram.usedLength), aia: .none, hasFirmware: kind & 2 != 0
                        )
                        .make()
                    }
                } catch { return }
                do throws(VMMError) { try plan.load(into: space) } catch {
                    found("what was placed in memory does not fit there: \(error.message)")
                }
                madvise(ram.host, ram.usedLength, MADV_DONTNEED)
            }
        })
}
