@testable import BatonDeviceKit
import BatonRuntime
import CBaton
import Glibc
import PCI
@testable import PreserverVFIOUser
@testable import VFIOPCI

/// A vfio-user server that says what the input says: its device as far as it can be opened, then a guest's accesses.
extension Target {
    static let vfioUser = Target(
        name: "vfio-user", longestInput: 8192,
        seeds: {
            func reply(_ command: UInt8, _ payload: [UInt8], flags: UInt8 = 1, fds: UInt8 = 0) -> [UInt8] {
                [command, flags, fds] + little(UInt16(payload.count)) + payload
            }
            func region(_ index: UInt32, size: UInt64, flags: UInt32, fds: UInt8 = 0) -> [UInt8] {
                reply(5, little(32 as UInt32, flags, index, 0) + little(size, 0), fds: fds)
            }
            let version = reply(1, little(0 as UInt16, 1) + Array(#"{"capabilities":{"max_msg_fds":8}}"#.utf8) + [0])
            let twin = reply(
                1,
                little(0 as UInt16, 1)
                    + Array(#"{"capabilities":{"twin_socket":{"supported":true,"fd_index":0}}}"#.utf8) + [0],
                fds: 1)
            var device = reply(2, []) + reply(4, little(16 as UInt32, 3, 9, 5))
            // BAR 0 can be mapped; then the other BARs, the ROM, and the configuration space.
            device += region(0, size: 0x2000, flags: 7, fds: 1) + region(1, size: 0x1000, flags: 3)
            for index in 2..<6 as Range<UInt32> { device += region(index, size: 0, flags: 0) }
            device += region(6, size: 0, flags: 0) + region(7, size: 256, flags: 3)
            for (index, count) in [1, 4, 8, 1, 1].enumerated() {
                device += reply(7, little(16 as UInt32, 1, UInt32(index), UInt32(count)))
            }
            var config = [UInt8](repeating: 0, count: 256)
            config.replaceSubrange(0..<8, with: [0x34, 0x12, 0x78, 0x56, 0, 0, 0x10, 0])
            config[0x0b] = 2
            // INTA; capabilities MSI, then MSI-X.
            (config[0x3d], config[0x34]) = (1, 0x40)
            config.replaceSubrange(0x40..<0x44, with: [5, 0x60, 0x84, 0])
            config.replaceSubrange(0x60..<0x6c, with: [0x11, 0, 7, 0, 1, 0, 0, 0, 1, 8, 0, 0])
            device += reply(9, little(0 as UInt64) + little(7 as UInt32, 256) + config)
            let more = (0..<40).flatMap { _ in reply(9, little(0 as UInt64) + little(0 as UInt32, 4, 9)) }
            let dma =
                reply(11, little(0x8000_0000 as UInt64, 16), flags: 0)
                + reply(12, little(0x8000_0000 as UInt64, 1) + [7], flags: 0)
            return [version + device + more, twin + device + more, version + dma + device + dma + more]
        },
        make: {
            let file = try MemoryFile("region")
            file.fill(length: 1 << 16)
            let host = try VFIOHost()
            return { bytes in
                let free = lowestFreeDescriptor()
                do {
                    let (ours, theirs) = try socketPair(SOCK_STREAM)
                    _ = fcntl(ours, F_SETFL, O_NONBLOCK)
                    Target.queueAnswers(bytes, on: theirs, file: file.fd)
                    host.use(ours)
                    close(theirs)
                }
                expect(lowestFreeDescriptor() == free, "a descriptor is lost")
            }
        })

    /// Sends what the server will say, and ends its side of the connection.
    private static func queueAnswers(_ bytes: [UInt8], on socket: Int32, file: Int32) {
        var input = Input(bytes)
        var number: UInt16 = 0
        var count = 0
        while !input.isAtEnd, count < 200 {
            count += 1
            let command = UInt16(input.byte())
            let flags = input.byte()
            let fds = [Int32](repeating: file, count: Int(input.byte() % 4))
            let payload = input.take(Int(input.number(UInt16.self) & 0x1fff))
            // Answers are in order, and few of another number.
            if flags & 0xf == 1, flags & 0x40 == 0 { number &+= 1 }
            var header = VFIOUserHeader(
                id: number, command: command, payload: payload.count, flags: UInt32(flags & 0x3f),
                error: flags & 0x20 == 0 ? 0 : 22)
            if flags & 0x80 != 0 { header.size = input.number(UInt32.self) }
            let message = header.bytes + payload
            guard cbaton_send_fds(socket, message, message.count, fds, fds.count, Int32(MSG_DONTWAIT)) > 0 else {
                break
            }
        }
        shutdown(socket, Int32(SHUT_WR))
    }
}

/// A machine of RAM, and the bridge above a function. Nothing of a function stays in the VM.
private final class VFIOHost: PCIHost {
    private static let memory: UInt64 = 0x4000_0000
    private static let size: UInt64 = 0x4000_0000
    private let vm: VirtualMachine
    private let ram: RAMBlock
    private var bus: PCIBus?
    private var window: PCIWindow?
    private var map: PCIAddressMap?

    init() throws {
        vm = try VirtualMachine()
        ram = try makeRAM("ram", 1 << 16)
        try vm.addressSpace.map(ram, at: 0x8000_0000, size: 1 << 16)
    }

    func mappingsChanged(_ function: PCIFunction) { map?.update(function, of: [function]) }
    func interruptChanged(_ function: PCIFunction) {}
    func send(address: UInt64, data: UInt32) -> Bool { vm.addressSpace.storeMessage(data, at: address) }

    /// Opens the device behind a connection, which is closed afterwards, and does what a guest would.
    func use(_ socket: Int32) {
        let window = PCIWindow(
            name: "window", isIO: false, start: VFIOHost.memory, busStart: VFIOHost.memory, size: VFIOHost.size)
        self.window = window
        map = PCIAddressMap(windows: [window], space: vm.addressSpace)
        let bus = PCIBus(name: "bus", host: self)
        do throws(VMMError) {
            let connection = try VFIOUserConnection(
                OwnedFD(adopting: socket), name: "input", space: vm.addressSpace, timeLimit: 1_000_000_000)
            let shape = try VFIOShape(of: connection)
            let function = try VFIOPCIDevice(
                vm: vm, model: "vfio-user-pci", id: nil, hostName: "input", label: "input", transport: connection,
                shape: shape, inherited: nil, notices: [.error], placement: VFIOPlacement())
            function.slot = PCISlot(device: 1, function: 0)
            function.bus = bus
            try connection.watch(vm)
            function.resetBusState()
            function.reset()
            function.resume()
            work(function, window)
            function.pause()
            let state = savedState(function)
            do throws(VMMError) { try loadState(state, into: function) } catch {
                found("a device refuses its own state: \(error.message)")
            }
            function.resetBusState()
        } catch {}
        map = nil
    }

    private func work(_ function: VFIOPCIDevice, _ window: PCIWindow) {
        for register in stride(from: 0, to: function.config.size, by: 4) {
            _ = function.readConfig(register, width: 4)
        }
        for bar in 0..<6 {
            function.writeConfig(0x10 + 4 * bar, width: 4, value: 0xffff_ffff)
            function.writeConfig(0x10 + 4 * bar, width: 4, value: UInt32(VFIOHost.memory) + UInt32(bar) << 20)
        }
        function.writeConfig(4, width: 2, value: 7)
        for bar in 0..<6 as Range<UInt64> {
            _ = window.mmioRead(offset: bar << 20, width: 4)
            window.mmioWrite(offset: bar << 20 + 8, width: 4, value: 1)
        }
        for register in stride(from: 0x40, to: 0x100, by: 2) {
            function.writeConfig(register, width: 2, value: 0xffff)
        }
        vm.loop.poll(timeout: 0)
    }
}
