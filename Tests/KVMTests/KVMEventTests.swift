import BatonDevices
import BatonRuntime
import CBaton
import Glibc
import KVM
import Testing
import Virtio

/// Notifications and interrupts that take no exit to this process.
@Suite("KVM's events", .serialized, .enabled(if: KVMHost.isUsable, "needs a /dev/kvm that can be used"))
struct KVMEventTests {
    /// In the same 2 MiB as the APICs, which the program has mapped.
    static let slotAddress: UInt64 = 0xfed1_0000
    static let (table, available, used) = (0x1_0000, 0x1_1000, 0x1_2000)

    /// Has the device fill one buffer after the other: makes it available, notifies, waits until it is used, and counts
    /// at 0x8000.
    static let asking: [UInt8] = [
        0xb9, 0x50, 0x00, 0xd1, 0xfe,  // mov ecx, the register
        0x66, 0xff, 0x04, 0x25, 0x02, 0x10, 0x01, 0x00,  // 1: inc word [available index]
        0xc7, 0x01, 0, 0, 0, 0,  // mov dword [rcx], 0
        0x66, 0x8b, 0x04, 0x25, 0x02, 0x10, 0x01, 0x00,  // mov ax, [available index]
        0x66, 0x3b, 0x04, 0x25, 0x02, 0x20, 0x01, 0x00,  // 2: cmp ax, [used index]
        0x75, 0xf6,  // jne 2b
        0x48, 0xff, 0x04, 0x25, 0x00, 0x80, 0x00, 0x00,  // inc qword [0x8000]
        0xeb, 0xd6,  // jmp 1b
    ]

    private func machine() throws -> KVMMachine {
        let machine = try KVMMachine()
        let slot = VirtioMMIO(slot: 0, line: InterruptLine { _ in }, address: KVMEventTests.slotAddress)
        let device = VirtioEntropy(vm: machine.vm)
        try slot.plug(device)
        try machine.vm.add(slot)
        try machine.vm.add(device)
        try machine.vm.addressSpace.map(
            slot, at: KVMEventTests.slotAddress, size: VirtioMMIO.registersSize, name: "virtio-mmio")
        return machine
    }

    /// What a driver does, but for the notifications.
    private func setUp(_ machine: KVMMachine) {
        func write(_ register: UInt64, _ value: UInt64) {
            #expect(machine.vm.addressSpace.mmioWrite(KVMEventTests.slotAddress + register, width: 4, value: value))
        }
        // A buffer of 16 bytes, and no interrupts.
        (machine[KVMEventTests.table], machine[KVMEventTests.table + 8]) = (0x2_0000, 16 | 2 << 32)
        machine[KVMEventTests.available] = 1
        for value in [0, 1, 3] as [UInt64] { write(0x70, value) }
        write(0x24, 1)
        write(0x20, 1)
        write(0x70, 11)
        write(0x38, 8)
        write(0x80, UInt64(KVMEventTests.table))
        write(0x90, UInt64(KVMEventTests.available))
        write(0xa0, UInt64(KVMEventTests.used))
        write(0x44, 1)
        write(0x70, 15)
    }

    private func exits(_ machine: KVMMachine, _ reason: String) throws -> Int64 {
        let command = try #require(machine.vm.commands.qmp["x-query-kvm-exits"])
        let answer = try command.handler([:]).arrayValue?.first?.objectValue
        let counts = answer?["exits"]?.arrayValue ?? []
        return counts.first { $0.objectValue?["reason"]?.stringValue == reason }?.objectValue?["count"]?.intValue ?? 0
    }

    @Test("serves a queue without an exit")
    func doorbell() throws {
        let machine = try machine()
        machine.loadLongMode(KVMEventTests.asking)
        try machine.vm.start()
        setUp(machine)
        try machine.run(until: "100 buffers") { machine[0x8000] >= 100 }
        #expect(try exits(machine, "mmio") == 0)
        machine.vm.stop()
        #expect(try exits(machine, "intr") > 0, "it was told to stop")
    }

    @Test("goes on in the next VM, and without an exit")
    func update() throws {
        let first = try machine()
        first.loadLongMode(KVMEventTests.asking)
        try first.vm.start()
        setUp(first)
        var current = first
        for _ in 0..<5 {
            let before = current[0x8000]
            try current.run(until: "buffers") { current[0x8000] >= before + 20 }
            current.vm.stop()
            let next = try machine()
            next.ram.host.copyMemory(from: current.ram.host, byteCount: KVMMachine.ramSize)
            try next.load(current.save())
            try next.vm.start()
            current = next
        }
        // There are some until the doorbell is there, which nobody waits for.
        var (early, since) = (Int64(-1), UInt64(0))
        try current.run(until: "20 buffers without an exit") {
            let now = (try? exits(current, "mmio")) ?? -1
            if now != early { (early, since) = (now, current[0x8000]) }
            return current[0x8000] >= since + 20
        }
    }

    @Test("sends a device's messages from an eventfd, masked and not")
    func interrupts() throws {
        let machine = try KVMMachine()
        machine.loadLongMode(KVMMachine.waiting, handlers: KVMMachine.tickHandler)
        machine.store(KVMMachine.tick, at: 0x1800)
        let fd = cbaton_eventfd()
        defer { close(fd) }
        var message: (address: UInt64, data: UInt32)? = (0xfee0_0000, 0x40)
        var seen = 0
        let event = InterruptEvent(vm: machine.vm, event: fd, message: { message }, onEvent: { seen += 1 })
        defer { event.remove() }
        func count() {
            var one: UInt64 = 1
            write(fd, &one, 8)
        }
        try machine.vm.start()
        try event.resume()
        try machine.run(until: "the guest to wait") { machine[0x8010] == 1 && event.isDirect }
        for number in 1...20 as ClosedRange<UInt64> {
            count()
            try machine.run(until: "an interrupt") { machine[0x8000] == number }
        }
        #expect(seen == 0)
        message = nil
        event.update()
        count()
        try machine.run(until: "the loop to see it") { seen == 1 }
        #expect(machine[0x8000] == 20)
        message = (0xfee0_0000, 0x40)
        event.update()
        // In a pause events wait, for this VM or for the next one.
        machine.vm.stop()
        event.pause()
        count()
        let next = try KVMMachine()
        next.ram.host.copyMemory(from: machine.ram.host, byteCount: KVMMachine.ramSize)
        try next.load(machine.save())
        let other = InterruptEvent(vm: next.vm, event: fd, message: { message }, onEvent: { seen += 1 })
        defer { other.remove() }
        try next.vm.start()
        // It is the other VM's, which would have it sent by the loop or by the kernel, once.
        try other.resume()
        try next.run(until: "the one that waited") { next[0x8000] == 21 || seen == 2 }
        try next.run(until: "the kernel to take it") { other.isDirect }
        let sent = next[0x8000]
        count()
        try next.run(until: "the next") { next[0x8000] == sent + 1 }
        #expect(machine[0x8000] == 20)
    }
}
