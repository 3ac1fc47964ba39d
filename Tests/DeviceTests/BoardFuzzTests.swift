import BatonRuntime
import Glibc
import TestSupport
import Testing
import VirtBoard
import Virtio

/// The whole board under accesses that no driver makes.
@Suite(.oneThread) struct BoardFuzzTests {
    let directory: TemporaryDirectory
    init() throws { directory = try TemporaryDirectory() }

    private func board() throws -> TestBoard {
        let board = try TestBoard(hartCount: 2, serial: TestChardev("s"))
        if (try? directory.writeSparse("disk", size: 1 << 20)) != nil {
            try board.vm.add(
                BlockBackend(
                    id: "d", filename: directory.file("disk"), readOnly: false, isLocked: false))
        }
        try board.vm.add(TestChardev("c"))
        try board.board.devices.add(NetBackend(id: "n", backend: "test"))
        for text in [
            "virtio-blk-device,drive=d", "virtio-rng-device", "virtio-serial-device", "virtconsole,chardev=c",
            "virtio-net-device,netdev=n", "virtio-rng-pci", "virtio-serial-pci,addr=5.0",
            "virtio-serial-pci,max_ports=3,id=vs", "virtconsole,bus=vs.0", "virtserialport,bus=vs.0,name=p,id=p",
            "virtio-balloon-pci,free-page-reporting=on", "virtio-scsi-pci",
        ] {
            try board.board.devices.add(KeyValueOptions(text, impliedKey: "driver"))
        }
        board.vm.resetDevices()
        for device in board.vm.devices { device.resume() }
        return board
    }

    @Test func regionsAreWhereQEMUHasThem() throws {
        let regions = try board().vm.addressSpace.mmioRegions.map { ($0.start, $0.size) }
        #expect(
            regions.map(\.0).sorted() == [
                0x10_0000, 0x10_1000, 0x200_0000, 0x300_0000, 0xc00_0000, 0x1000_0000, 0x1000_1000, 0x1000_2000,
                0x1000_3000, 0x1000_4000, 0x1000_5000, 0x1000_6000, 0x1000_7000, 0x1000_8000, 0x1010_0000, 0x3000_0000,
                0x4000_0000,
                0x4_0000_0000,
            ])
    }

    /// Whether an access is no fault: as in QEMU, whose devices say which widths are valid.
    private static func isTaken(_ region: (start: UInt64, size: UInt64, name: String), _ offset: UInt64, _ width: Int)
        -> Bool
    {
        guard offset + UInt64(width) <= region.size else { return false }
        let isAligned = offset % UInt64(width) == 0
        switch region.name {
        case "riscv.sifive.test": return width == 2 || width == 4
        case "goldfish_rtc": return width >= 4
        case "riscv.sifive.plic": return width == 4 && isAligned
        case "riscv.sifive.clint": return (width == 4 || width == 8 && offset >= 0x4000) && isAligned
        // The data register, the selector, and DMA's.
        case "fwcfg": return offset == 0 || offset == 8 && width <= 2 || offset >= 16
        default: return true
        }
    }

    @Test func everyWidthAtEveryOffsetIsAnswered() throws {
        let board = try board()
        let space = board.vm.addressSpace
        for region in space.mmioRegions {
            // All of the small regions; of the PLIC the parts with registers.
            // Of PCI's, the host bridge's configuration and one that is not there.
            let isPCI = region.name.hasPrefix("pcie") || region.name.hasPrefix("gpex")
            let offsets =
                isPCI
                ? Array(0..<0x80) + Array(0xff0..<0x1010)
                : Array(0..<min(region.size, 0x4100)) + (region.size > 0x4100 ? Array(0xbff0..<0xc000) : [])
                    + (region.size > 0x20_0000 ? Array(0x20_0000..<0x20_5000) : [])
            for offset in offsets {
                for width in [1, 2, 4, 8] {
                    let fits = Self.isTaken(region, offset, width)
                    #expect((space.mmioRead(region.start + offset, width: width) != nil) == fits)
                    for value in [0, UInt64.max] where region.name != "riscv.sifive.test" {
                        #expect(space.mmioWrite(region.start + offset, width: width, value: value) == fits)
                    }
                }
            }
        }
    }

    @Test func randomAccessesNeverEndTheProcessAndStatesRoundTrip() throws {
        let board = try board()
        let space = board.vm.addressSpace
        let regions = space.mmioRegions
        var random = Randomness(seed: 0x5eed)
        // Ring contents that point somewhere near themselves.
        for offset in stride(from: 0, to: 1 << 20, by: 8) {
            let value = random.next()
            board.ram.host.storeBytes(
                of: value % 3 == 0 ? 0x8000_0000 + value % (1 << 20) : value & 0x0003_0007_0000_0fff,
                toByteOffset: offset,
                as: UInt64.self)
        }
        for step in 0..<200_000 {
            let region = regions[Int.random(in: 0..<regions.count, using: &random)]
            let width = [4, 4, 4, 4, 1, 2, 8][Int.random(in: 0..<7, using: &random)]
            let isVirtio = region.name == "virtio-mmio"
            var offset = UInt64.random(in: 0..<(isVirtio ? 0x180 : min(region.size, 0x21_0000)), using: &random)
            if Int.random(in: 0..<8, using: &random) > 0 { offset &= ~UInt64(width - 1) }
            var value = random.next()
            if isVirtio, Int.random(in: 0..<4, using: &random) > 0 {
                // Mostly what a driver would write.
                value =
                    [0, 1, 3, 8, 11, 15, 0x8000_0000 + value % (1 << 20) & ~15, 4][
                        Int.random(in: 0..<8, using: &random)]
            }
            let fits = Self.isTaken(region, offset, width)
            if Bool.random(using: &random) {
                #expect((space.mmioRead(region.start + offset, width: width) != nil) == fits)
            } else {
                #expect(space.mmioWrite(region.start + offset, width: width, value: value) == fits)
            }
            if step % 20_000 == 0 { try roundTrip(board) }
        }
        try roundTrip(board)
        // What devices may not write is as the board's start left it.
        let rom = try #require(board.rom)
        let fresh = try #require(try self.board().rom)
        #expect(memcmp(rom.host, fresh.host, rom.usedLength) == 0)
        // And a reset takes every device back to where a new one starts.
        board.vm.resetDevices()
        for device in board.vm.devices { device.pause() }
        let other = try self.board()
        for (device, new) in zip(board.vm.devices, other.vm.devices) {
            new.pause()
            // The clock keeps what was set.
            guard !device.stateName.hasPrefix("cpu"), device.stateName != "rtc" else { continue }
            #expect(savedState(device) == savedState(new), "\(device.stateName) after a reset")
        }
    }

    /// Every device's state loads into another machine over the same RAM, and
    /// saves as the same bytes.
    private func roundTrip(_ board: TestBoard) throws {
        for device in board.vm.devices { device.pause() }
        let other = try self.board()
        for device in other.vm.devices { device.pause() }
        for (device, target) in zip(board.vm.devices, other.vm.devices) {
            #expect(device.stateName == target.stateName)
            // The harts' states are the business of their own tests.
            guard !device.stateName.hasPrefix("cpu") else { continue }
            let state = savedState(device)
            try loadState(state, into: target)
            #expect(savedState(target) == state, "\(device.stateName)")
        }
        for device in board.vm.devices { device.resume() }
    }

    @Test func damagedStatesAreRefusedOrTakenButNeverCrash() throws {
        let board = try board()
        for device in board.vm.devices { device.pause() }
        var random = Randomness(seed: 3)
        for device in board.vm.devices where !device.stateName.hasPrefix("cpu") {
            let state = savedState(device)
            /// - Returns: whether it was taken.
            func offer(_ bad: [UInt8]) throws -> Bool {
                let before = savedState(device)
                do {
                    try loadState(bad, into: device)
                } catch {
                    #expect(savedState(device) == before, "\(device.stateName): a refused state changes nothing")
                    return false
                }
                // What was taken is a state like any other.
                let taken = savedState(device)
                try loadState(taken, into: device)
                #expect(savedState(device) == taken, "\(device.stateName): what was taken cannot be loaded again")
                return true
            }
            // A disk's last two fields and the loader's one are optional: without them the state is of an older version.
            var whole = device is VirtioBlock || device.stateName.contains("blk") ? 2 : 0
            if device.stateName == "loader" { whole = 1 }
            for length in 0..<min(state.count, 400) where try offer(Array(state[..<length])) {
                whole -= 1
                #expect(whole >= 0, "\(device.stateName): the first \(length) bytes")
            }
            guard !state.isEmpty else { continue }
            for _ in 0..<400 {
                var bad = state
                for _ in 0..<2 {
                    bad[Int.random(in: 0..<bad.count, using: &random)] = UInt8.random(in: 0...255, using: &random)
                }
                _ = try offer(bad)
            }
        }
    }
}
