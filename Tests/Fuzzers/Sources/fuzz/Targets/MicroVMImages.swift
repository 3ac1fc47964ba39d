import BatonRuntime
import Firmware
import Glibc
@testable import MicroVM

/// Kernels and firmware of the x86-64 board: placed or refused, and stored in memory.
extension Target {
    static let microVMImages = Target(
        name: "image-microvm",
        seeds: {
            let kernels = [
                SampleKernels.bzImage(), SampleKernels.elf(machine: 62, address: 0x10_0000, note: 0x10_0000),
                SampleKernels.elf(machine: 3, address: 0x10_0000, note: 0x10_0002),
            ]
            return kernels.flatMap { kernel in (0..<4).map { [$0] + kernel } }
        },
        make: {
            let layout = RAMLayout(size: 32 << 20)
            let space = AddressSpace()
            let ram = try makeRAM("ram", Int(layout.size))
            try space.map(ram, at: 0, size: layout.size)
            let (file, initrd, firmware) = (try MemoryFile("kernel"), try MemoryFile("initrd"), try MemoryFile("bios"))
            initrd.write([1, 2, 3])
            firmware.fill(length: 64 << 10)
            let bios = try makeRAM("bios", 64 << 10)
            try space.map(bios, at: MemoryMap.firmwareEnd - UInt64(bios.usedLength), size: UInt64(bios.usedLength))
            var configuration = ACPIConfiguration(
                apicIDs: [0], interrupts: InterruptLayout(acpi: true, secondIOAPIC: true))
            configuration.hasPIC = true
            let tables = ACPITables(configuration)
            return { bytes in
                var input = Input(bytes)
                let kind = input.byte()
                file.write(input.rest())
                var files = BootFiles()
                if kind & 4 == 0 { files.kernel = file.path } else { files.firmware = file.path }
                if kind & 4 == 0, kind & 8 != 0 { files.firmware = firmware.path }
                if kind & 4 == 0, kind & 1 != 0 { files.initrd = initrd.path }
                if kind & 4 == 0, kind & 2 != 0 { files.commandLine = "console=ttyS0 quiet" }
                let plan: BootPlan
                do throws(VMMError) {
                    plan = try BootPlan(files: files, memory: layout, tables: kind & 16 == 0 ? tables : nil)
                } catch { return }
                if files.firmware == nil || kind & 4 == 0 {
                    do throws(VMMError) { try plan.load(into: space) } catch {
                        found("what was placed in memory does not fit there: \(error.message)")
                    }
                    madvise(ram.host, ram.usedLength, MADV_DONTNEED)
                }
            }
        })
}
