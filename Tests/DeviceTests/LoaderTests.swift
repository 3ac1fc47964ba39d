import BatonRuntime
import Foundation
import TestSupport
import Testing
import VirtBoard

@Suite struct LoaderTests {
    let directory: TemporaryDirectory
    init() throws { directory = try TemporaryDirectory() }

    private static func bytes<T: FixedWidthInteger>(_ value: T) -> Data {
        withUnsafeBytes(of: value.littleEndian) { Data($0) }
    }

    /// A Linux `Image`: a header that asks for `memory` bytes, and `size` bytes.
    private func linuxImage(size: Int = 4096, memory: UInt64) -> Data {
        var image = Data(repeating: 0x13, count: size)
        image.replaceSubrange(0..<4, with: Data([0x4d, 0x5a, 0x6f, 0x10]))
        image.replaceSubrange(8..<32, with: Self.bytes(UInt64(0x20_0000)) + Self.bytes(memory) + Self.bytes(UInt64(0)))
        image.replaceSubrange(48..<60, with: Data("RISCV\0\0\0RSC\u{5}".utf8))
        return image
    }

    /// An ELF file with one segment.
    private func elf(
        machine: UInt16 = 243, address: UInt64 = 0x8000_1000, content: [UInt8] = [1, 2, 3, 4], memory: UInt64 = 16,
        entry: UInt64 = 0x8000_1004, offset: UInt64 = 120, fileSize: UInt64? = nil
    ) -> Data {
        var data = Data([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1, 0] + [UInt8](repeating: 0, count: 8))
        data += Self.bytes(UInt16(2)) + Self.bytes(machine) + Self.bytes(UInt32(1)) + Self.bytes(entry)
        data += Self.bytes(UInt64(64)) + Self.bytes(UInt64(0)) + Self.bytes(UInt32(0))
        for value in [UInt16(64), 56, 1, 0, 0, 0] { data += Self.bytes(value) }
        data += Self.bytes(UInt32(1)) + Self.bytes(UInt32(7)) + Self.bytes(offset) + Self.bytes(UInt64(0xffff_0000))
        data += Self.bytes(address) + Self.bytes(fileSize ?? UInt64(content.count)) + Self.bytes(memory)
        data += Self.bytes(UInt64(4096))
        return data + Data(content)
    }

    private func file(_ contents: Data) throws -> String { try directory.write("file", contents) }

    /// The error that a board with these files gives.
    private func failure(memory: Int = 64 << 20, _ setUp: (inout BootFiles) -> Void) throws -> String {
        let board = try TestBoard(memory: memory, setUp)
        let error = #expect(throws: VMMError.self) { try board.board.prepareImages() }
        return error?.message ?? ""
    }

    private func started(
        hartCount: Int = 1, memory: Int = 64 << 20, _ setUp: (inout BootFiles) -> Void
    ) throws -> TestBoard {
        let board = try TestBoard(hartCount: hartCount, memory: memory, setUp)
        try board.board.prepareImages()
        board.vm.resetDevices()
        return board
    }

    private func tree(_ board: TestBoard, at address: UInt64) throws -> DeviceTree {
        let size = board.word(address + 4, UInt32.self).map { Int($0.byteSwapped) } ?? 0
        let host = try #require(board.vm.addressSpace.dma(address, length: UInt64(size), writing: false))
        return try DeviceTree(flattened: Array(UnsafeRawBufferPointer(start: host, count: size)))
    }

    @Test func aLinuxImageGoesBehindTheFirmwaresRoom() throws {
        let kernel = try directory.write("linux", linuxImage(memory: 1 << 20))
        let initrd = try directory.write("initrd", Data(repeating: 0x55, count: 10_000))
        let board = try started {
            $0.kernel = kernel
            $0.initrd = initrd
            $0.commandLine = "console=ttyS0"
        }
        #expect(board.word(0x8020_0000, UInt32.self) == 0x106f_5a4d)
        // The tree: 2 MiB aligned at the end; the initrd: half the memory on.
        let tree = try tree(board, at: 0x83e0_0000)
        let chosen = try #require(tree.root.find("chosen"))
        #expect(chosen.value("bootargs") == Array("console=ttyS0\0".utf8))
        #expect(chosen.value("linux,initrd-start") == [0, 0, 0, 0, 0x82, 0x20, 0, 0])
        #expect(chosen.value("linux,initrd-end") == [0, 0, 0, 0, 0x82, 0x20, 0x27, 0x10])
        #expect(board.word(0x8220_0000, UInt64.self) == 0x5555_5555_5555_5555)
        #expect(board.harts[0].programCounter == 0x8020_0000)
        let registers = board.accelerator.registers(ofCPU: 0)
        #expect(registers.contains("83e00000"), "a1 is the tree's address")
    }

    @Test func withoutFirmwareTheKernelIsAtTheStartInMachineMode() throws {
        let kernel = try file(Data([0x6f, 0, 0, 0]))
        let board = try started {
            $0.firmware = .none
            $0.kernel = kernel
        }
        #expect(board.word(0x8000_0000, UInt32.self) == 0x6f)
        #expect(board.harts[0].programCounter == 0x1000)
        // start_addr, device tree, fw_dynamic_info.
        #expect(board.word(0x1018, UInt64.self) == 0x8000_0000)
        #expect(board.word(0x1020, UInt64.self) == 0x83e0_0000)
        #expect(board.word(0x1028, UInt64.self) == 0x4942_534f)
        #expect(board.word(0x1030, UInt64.self) == 2)
        #expect(board.word(0x1038, UInt64.self) == 0x8000_0000)
        #expect(board.word(0x1040, UInt64.self) == 1)
    }

    @Test func firmwareGoesToTheStartAndTheKernelBehindIt() throws {
        let firmware = try directory.write("fw", Data(repeating: 1, count: 3 << 20))
        let kernel = try directory.write("linux", linuxImage(memory: 1 << 20))
        let board = try started {
            $0.firmware = .file(firmware)
            $0.kernel = kernel
        }
        #expect(board.word(0x8000_0000, UInt32.self) == 0x0101_0101)
        #expect(board.word(0x8040_0000, UInt32.self) == 0x106f_5a4d)
        #expect(board.word(0x1018, UInt64.self) == 0x8000_0000)
        #expect(board.word(0x1038, UInt64.self) == 0x8040_0000)
    }

    @Test func anELFFileGoesToItsAddressesAndItsRestIsCleared() throws {
        let kernel = try file(elf())
        let board = try TestBoard {
            $0.firmware = .none
            $0.kernel = kernel
        }
        memset(board.ram.host + 0x1000, 0xff, 32)
        try board.board.prepareImages()
        board.vm.resetDevices()
        #expect(board.word(0x8000_1000, UInt64.self) == 0x0403_0201)
        #expect(board.word(0x8000_1008, UInt64.self) == 0)
        #expect(board.word(0x8000_1010, UInt64.self) == UInt64.max)
        #expect(board.word(0x1018, UInt64.self) == 0x8000_1004, "the reset vector goes to the entry")
    }

    @Test func everyResetLoadsAnew() throws {
        let kernel = try file(linuxImage(memory: 1 << 20))
        let board = try started { $0.kernel = kernel }
        board.ram.host.storeBytes(of: 0, toByteOffset: 0x20_0000, as: UInt32.self)
        board.vm.resetDevices()
        #expect(board.word(0x8020_0000, UInt32.self) == 0x106f_5a4d)
    }

    @Test func nothingIsReadOrLoadedBeforeTheFirstReset() throws {
        let kernel = try file(linuxImage(memory: 4096))
        let board = try started { $0.kernel = kernel }
        let states = board.vm.devices.map(savedState)
        let other = try TestBoard { $0.kernel = "/nonexistent/kernel" }
        for (device, state) in zip(other.vm.devices, states) { try loadState(state, into: device) }
        #expect(other.word(0x1000, UInt64.self) == 0)
        for address in stride(from: UInt64(0x8000_0000), to: 0x8400_0000, by: 4096)
        where other.word(address, UInt64.self) != 0 {
            Issue.record("guest memory was touched at \(Hex(address))")
        }
    }

    @Test func refusesFilesThatAreNotThere() throws {
        #expect(
            try failure { $0.kernel = "/nonexistent" }
                == "could not load kernel '/nonexistent': Could not open '/nonexistent': No such file or directory")
        #expect(
            try failure { $0.firmware = .file("/nonexistent") }.hasPrefix(
                "Unable to load the RISC-V firmware \"/nonexistent\": "))
        let kernel = try file(linuxImage(memory: 4096))
        #expect(
            try failure {
                $0.kernel = kernel
                $0.initrd = "/nonexistent"
            }.hasPrefix("could not load ramdisk '/nonexistent': "))
        #expect(try failure { $0.initrd = kernel } == "-initrd only allowed with -kernel option")
        #expect(try failure { $0.commandLine = "x" } == "-append only allowed with -kernel option")
        #expect(try failure { $0.kernel = "/tmp" }.contains("Is a directory"))
        let device = "Could not open '/dev/null': it is a character device, not a regular file"
        #expect(try failure { $0.kernel = "/dev/null" }.hasSuffix(device))
        #expect(try failure { $0.firmware = .file("/dev/null") }.hasSuffix(device))
        #expect(try failure { $0.deviceTree = "/dev/null" }.hasSuffix(device))
    }

    @Test func refusesKernelsThatDoNotFit() throws {
        let big = try directory.writeSparse("big", size: 80 << 20)
        #expect(try failure { $0.kernel = big }.contains("too large"))
        let bss = try file(linuxImage(memory: 1 << 40))
        #expect(try failure { $0.kernel = bss }.contains("do not fit into guest memory"))
        let wrap = try file(linuxImage(memory: UInt64.max - 5))
        #expect(try failure { $0.kernel = wrap }.contains("do not fit into guest memory"))
        let tight = try file(linuxImage(memory: 62 << 20))
        #expect(try failure { $0.kernel = tight }.contains("leaves no room for the device tree"))
        let empty = try file(Data())
        #expect(try failure { $0.kernel = empty }.contains("the file is empty"))
    }

    @Test func refusesInitrdsThatDoNotFit() throws {
        let kernel = try file(linuxImage(memory: 30 << 20))
        let initrd = try directory.writeSparse("initrd", size: 40 << 20)
        #expect(
            try failure {
                $0.kernel = kernel; $0.initrd = initrd
            }.contains("do not fit into guest memory"))
        // Too large for the second half, but not for what the kernel leaves.
        let large = try directory.writeSparse("large", size: 29 << 20)
        let board = try started {
            $0.kernel = kernel; $0.initrd = large
        }
        let chosen = try tree(board, at: 0x83e0_0000).root.find("chosen")
        #expect(chosen?.value("linux,initrd-start") == [0, 0, 0, 0, 0x82, 0, 0, 0])
    }

    @Test func refusesWrongELFFiles() throws {
        for (data, message) in [
            (elf(machine: 62), "the ELF file is for machine 62, not RISC-V (243)"),
            (elf(address: 0x1000), "do not fit into guest memory"),
            (elf(address: 0x83ff_fff8), "do not fit into guest memory"),
            (elf(address: UInt64.max - 3, memory: 16), "does not fit into guest memory"),
            (elf(memory: UInt64.max), "does not fit into guest memory"),
            (elf(memory: 2), "larger in the file than in memory"),
            (elf(offset: 1 << 40), "is truncated"),
            (elf(offset: UInt64.max - 1), "is truncated"),
            (elf(memory: 0), "nothing to load"),
        ] {
            let path = try file(data)
            let text = try failure { $0.kernel = path }
            #expect(text.contains(message), "\(text)")
        }
    }

    @Test func aTruncatedKernelIsRefused() throws {
        let whole = elf()
        for length in 1..<whole.count {
            let path = try file(whole.prefix(length))
            // What is too short for an ELF file's magic is a flat image.
            if length < 4 {
                let board = try started { $0.kernel = path }
                #expect(try bytes(board, at: 0x8020_0000, count: length) == whole.prefix(length))
            } else {
                let text = try failure { $0.kernel = path }
                #expect(text.hasPrefix("could not load kernel '\(path)': "), "\(text)")
                #expect(text.hasSuffix("truncated"), "\(length) bytes: \(text)")
            }
        }
    }

    /// A corrupted kernel is refused in the loader's words, or what its headers say now is in memory.
    @Test func aCorruptedKernelIsRefusedOrLoadedAsItSays() throws {
        let whole = elf()
        let reasons = [
            "truncated", "64-bit", "little endian", "is for machine", "is of type", "program headers", "larger",
            "nothing to load", "do not fit into guest memory", "leaves no room", "too large", "not in guest memory",
        ]
        var random = Randomness(seed: 11)
        var (loaded, refused) = (0, 0)
        for _ in 0..<500 {
            var bad = whole
            for _ in 0..<3 {
                bad[Int.random(in: 4..<whole.count, using: &random)] = UInt8.random(in: 0...255, using: &random)
            }
            let path = try file(bad)
            let board = try TestBoard { $0.kernel = path }
            do {
                try board.board.prepareImages()
            } catch {
                refused += 1
                let text = "\(error)"
                #expect(reasons.contains { text.contains($0) }, "\(text)")
                continue
            }
            loaded += 1
            board.vm.resetDevices()
            func field(_ offset: Int) -> UInt64 {
                bad.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: offset, as: UInt64.self) }
            }
            // Where the one program header is still the one.
            guard field(32) == 64, bad[54...57].elementsEqual([56, 0, 1, 0]) else { continue }
            let (offset, address, size) = (Int(field(72)), field(88), Int(field(96)))
            #expect(try bytes(board, at: address, count: size) == bad[offset..<offset + size])
        }
        #expect(loaded > 50 && refused > 50, "\(loaded) loaded, \(refused) refused")
    }

    private func bytes(_ board: TestBoard, at address: UInt64, count: Int) throws -> Data {
        guard count > 0 else { return Data() }
        let host = try #require(board.vm.addressSpace.dma(address, length: UInt64(count), writing: false))
        return Data(bytes: host, count: count)
    }

    @Test func aGivenDeviceTreeIsPatched() throws {
        var given = DeviceTree()
        given.root.set("model", "mine")
        given.root.child("chosen").set("bootargs", "old")
        given.reservations = []
        let path = try directory.write("dtb", Data(given.flattened()))
        let kernel = try file(linuxImage(memory: 1 << 20))
        let board = try started {
            $0.kernel = kernel
            $0.deviceTree = path
            $0.commandLine = "new"
        }
        let tree = try tree(board, at: 0x83e0_0000)
        #expect(tree.root.value("model") == Array("mine\0".utf8))
        #expect(tree.root.find("chosen")?.value("bootargs") == Array("new\0".utf8))
        let wrong = try directory.write("wrong", "this is not a tree")
        #expect(try failure { $0.deviceTree = wrong } == "could not load device tree '\(wrong)': FDT_ERR_BADMAGIC")
    }

    @Test func flashHoldsItsImage() throws {
        var image = Data(count: 32 << 20)
        image[0] = 0x6f
        let path = try directory.write("flash", image)
        let board = try TestBoard(flash: [try BlockBackend(id: "p", filename: path, readOnly: true)]) {
            $0.firmware = .none
        }
        try board.board.prepareImages()
        board.vm.resetDevices()
        #expect(board.word(0x2000_0000, UInt32.self) == 0x6f)
        #expect(board.word(0x1018, UInt64.self) == 0x2000_0000)
        #expect(board.vm.addressSpace.dma(0x2000_0000, length: 4, writing: true) == nil)
        let small = try directory.writeSparse("small", size: 1 << 20)
        let error = #expect(throws: VMMError.self) {
            try TestBoard(flash: [try BlockBackend(id: "p", filename: small, readOnly: true)])
        }
        #expect(error?.message == "device requires 33554432 bytes, block backend 'p' provides 1048576 bytes")
    }
}
