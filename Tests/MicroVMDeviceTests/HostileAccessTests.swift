import BatonRuntime
import GuestHealth
import MicroVM
import TestSupport
import Testing

/// All of the devices under accesses that no driver makes.
@Suite struct HostileAccessTests {
    /// The devices at their ports and addresses.
    private final class Board {
        final class WallClock { var now: Int64 = 1_700_000_000_000_000_000 }

        let machine: DeviceMachine
        let ports = AddressSpace()
        let memory = AddressSpace()
        let wall: WallClock
        var vm: VirtualMachine { machine.vm }

        init(wall: WallClock = WallClock()) throws {
            machine = try DeviceMachine()
            self.wall = wall
            let vm = machine.vm
            let clock = CMOSClock(
                loop: vm.loop, line: Wire().line, memoryBelow4G: 1 << 30, memoryAbove4G: 0, wallClock: { wall.now })
            let exit = ISADebugExit(machine: vm)
            let console = try DebugConsole(vm: vm, chardev: TestChardev())
            let panic = PVPanic(vm: vm)
            let events = GenericEventDevice(vm: vm, line: Wire().line)
            for device in [clock, exit, console, panic, events] as [any Device] { try vm.add(device) }
            try ports.map(clock, at: CMOSClock.firstPort, size: CMOSClock.portCount, name: "rtc")
            try ports.map(PostCodePort(), at: PostCodePort.port, size: PostCodePort.portCount, name: "post")
            try ports.map(console, at: DebugConsole.defaultPort, size: DebugConsole.portCount, name: "debugcon")
            try ports.map(exit, at: ISADebugExit.defaultPort, size: ISADebugExit.defaultPortCount, name: "exit")
            try ports.map(panic, at: PVPanic.defaultPort, size: PVPanic.portCount, name: "pvpanic")
            try memory.map(
                events.eventSelect, at: 0xfea0_0000, size: GenericEventDevice.eventSelectSize, name: "ged-events")
            try memory.map(
                events.registers, at: 0xfea0_0200, size: GenericEventDevice.registersSize, name: "ged-registers")
            try vm.start()
        }

        /// Lets the loop come to what accesses have put off, and goes on if that stopped the VM.
        func turn() throws {
            vm.loop.poll(timeout: 0)
            if !vm.isRunning { try vm.start() }
        }
    }

    /// Whether an access is answered, as QEMU's devices say which widths are valid.
    private static func isTaken(_ name: String, _ size: UInt64, _ offset: UInt64, _ width: Int) -> Bool {
        guard offset + UInt64(width) <= size else { return false }
        return name == "ged-events" ? width == 4 : name == "ged-registers" ? width == 1 : true
    }

    @Test func everyWidthAtEveryOffsetIsAnswered() throws {
        let board = try Board()
        for space in [board.ports, board.memory] {
            for region in space.mmioRegions {
                for offset in 0..<region.size {
                    for width in [1, 2, 4, 8] {
                        let isTaken = Self.isTaken(region.name, region.size, offset, width)
                        for value in [0, UInt64.max, 0x4242_4242_4242_4242] {
                            #expect(space.mmioWrite(region.start + offset, width: width, value: value) == isTaken)
                            let read = space.mmioRead(region.start + offset, width: width)
                            #expect((read != nil) == isTaken, "\(region.name) + \(offset), \(width) bytes")
                            if let read, width < 8 { #expect(read >> UInt64(8 * width) == 0, "\(region.name)") }
                        }
                    }
                }
            }
            try board.turn()
        }
    }

    @Test func randomAccessesDoNoHarmAndStatesRoundTrip() throws {
        let board = try Board()
        var random = Randomness(seed: 0x5eed)
        for step in 0..<100_000 {
            // Half of all goes to the clock.
            let space = Int.random(in: 0..<8, using: &random) == 0 ? board.memory : board.ports
            let regions = space.mmioRegions
            let region = regions[Bool.random(using: &random) ? 0 : Int.random(in: 0..<regions.count, using: &random)]
            let offset = UInt64.random(in: 0..<region.size, using: &random)
            let width = [1, 1, 1, 2, 4, 8][Int.random(in: 0..<6, using: &random)]
            let isTaken = Self.isTaken(region.name, region.size, offset, width)
            var value = random.next()
            // Indices of registers rather than of memory.
            if region.name == "rtc", Bool.random(using: &random) { value &= 0x0f }
            if Bool.random(using: &random) {
                #expect((space.mmioRead(region.start + offset, width: width) != nil) == isTaken)
            } else {
                #expect(space.mmioWrite(region.start + offset, width: width, value: value) == isTaken)
            }
            switch Int.random(in: 0..<1000, using: &random) {
            case 0: board.wall.now = Int64(bitPattern: random.next())
            case 1: board.wall.now = [Int64.min, .max, 0, -1].randomElement(using: &random)!
            case 2...50: board.wall.now &+= Int64(random.next() % 10_000_000_000)
            case 51...70: try board.turn()
            case 71: board.vm.requestPowerdown()
            default: break
            }
            if step % 2_000 == 0 { try roundTrip(board) }
        }
        #expect(board.vm.loop.timerCount <= 1)
    }

    private func roundTrip(_ board: Board) throws {
        for device in board.vm.devices { device.pause() }
        let other = try Board(wall: board.wall)
        for device in other.vm.devices { device.pause() }
        for (device, target) in zip(board.vm.devices, other.vm.devices) {
            let state = savedState(device)
            try loadState(state, into: target)
            #expect(savedState(target) == state, "\(device.stateName)")
        }
        for device in board.vm.devices { device.resume() }
    }

    @Test func damagedStatesAreRefusedOrTakenButNeverCrash() throws {
        let board = try Board()
        var random = Randomness(seed: 3)
        for device in board.vm.devices {
            let state = savedState(device)
            /// - Returns: whether it was taken.
            func offer(_ bad: [UInt8]) throws -> Bool {
                device.pause()
                let before = savedState(device)
                do {
                    try loadState(bad, into: device)
                } catch {
                    #expect(savedState(device) == before, "\(device.stateName): a refused state changes nothing")
                    return false
                }
                let taken = savedState(device)
                try loadState(taken, into: device)
                #expect(savedState(device) == taken, "\(device.stateName): what was taken cannot be loaded again")
                device.resume()
                board.wall.now += 3_000_000_000
                try board.turn()
                return true
            }
            for length in state.indices {
                #expect(try !offer(Array(state[..<length])), "\(device.stateName): the first \(length) bytes")
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
