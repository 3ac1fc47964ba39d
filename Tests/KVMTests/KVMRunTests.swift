import BatonDevices
import BatonRuntime
import CBaton
import CKVM
import Glibc
import KVM
import Testing

/// Tiny guests on the host's KVM.
@Suite("KVM", .serialized, .enabled(if: KVMHost.isUsable, "needs a /dev/kvm that can be used"))
struct KVMRunTests {
    @Test("starts in real mode at the reset vector, and has ports")
    func realMode() throws {
        let machine = try KVMMachine()
        machine.loadRealMode([
            0xb9, 0x0a, 0x00,  // mov cx, 10
            0xba, 0x00, 0x01,  // mov dx, 0x100
            0x88, 0xc8, 0xee, 0xe2, 0xfb,  // 1: mov al, cl; out dx, al; loop 1b
            0xba, 0x99, 0x99, 0xed,  // mov dx, 0x9999; in ax, dx
            0xba, 0x00, 0x01, 0xef,  // mov dx, 0x100; out dx, ax
            0xba, 0x03, 0x01, 0xec,  // mov dx, 0x103; in al, dx
            0xba, 0x00, 0x01, 0xee,  // mov dx, 0x100; out dx, al
            0xf4, 0xeb, 0xfd,  // 1: hlt; jmp 1b
        ])
        try machine.vm.start()
        try machine.run(until: "12 writes") { machine.ports.writes.count == 12 }
        #expect(machine.ports.writes == [10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0xffff, 0x43])
        machine.vm.stop()
        #expect(machine.accelerator.cpus[0].halted)
        #expect(machine.accelerator.cpus[0].target == "x86_64")
    }

    @Test("carries a string of port accesses out, one by one")
    func stringPort() throws {
        let machine = try KVMMachine()
        machine.loadRealMode([
            0xfc, 0x31, 0xf6,  // cld; xor si, si
            0x8c, 0xc8, 0x8e, 0xd8,  // mov ax, cs; mov ds, ax
            0xb9, 0x04, 0x00, 0xba, 0x00, 0x01,  // mov cx, 4; mov dx, 0x100
            0xbe, 0x20, 0x00, 0xf3, 0x6f,  // mov si, 0x20; rep outsw
            0xf4, 0xeb, 0xfd,
        ])
        // The segment's selector is not its base after a reset: DS is 0xf000, so the words are at 0xf0020.
        machine.store([0x00, 0x11, 0x01, 0x11, 0x02, 0x11, 0x03, 0x11], at: 0xf0020)
        try machine.vm.start()
        try machine.run(until: "4 writes") { machine.ports.writes.count == 4 }
        #expect(machine.ports.writes == [0x1100, 0x1101, 0x1102, 0x1103])
    }

    @Test("keeps stores out of ROM")
    func rom() throws {
        let machine = try KVMMachine()
        machine.loadRealMode([
            0x2e, 0xc6, 0x06, 0x00, 0x80, 0x5a,  // mov byte cs:[0x8000], 0x5a
            0x2e, 0xa0, 0x00, 0x80,  // mov al, cs:[0x8000]
            0xba, 0x00, 0x01, 0xee,  // mov dx, 0x100; out dx, al
            0xf4, 0xeb, 0xfd,
        ])
        try machine.vm.start()
        try machine.run(until: "a write") { machine.ports.writes.count == 1 }
        #expect(machine.ports.writes == [0])
    }

    @Test("answers reads of memory that is not there with ones")
    func holes() throws {
        let machine = try KVMMachine()
        machine.loadLongMode([
            0xbb, 0x00, 0x00, 0x3f, 0x00,  // mov ebx, 0x3f0000
            0x81, 0xc3, 0x00, 0x00, 0x01, 0x00,  // add ebx, 0x10000: behind RAM
            0x48, 0x8b, 0x03,  // mov rax, [rbx]
            0x48, 0x89, 0x04, 0x25, 0x00, 0x80, 0x00, 0x00,  // mov [0x8000], rax
            0x48, 0x89, 0x03,  // mov [rbx], rax
            0x48, 0xff, 0x04, 0x25, 0x08, 0x80, 0x00, 0x00,  // inc qword [0x8008]
            0xf4, 0xeb, 0xfd,
        ])
        machine[0x4010] = 0x40_0083
        try machine.vm.start()
        try machine.run(until: "the end") { machine[0x8008] == 1 }
        #expect(machine[0x8000] == UInt64.max)
    }

    @Test("has accesses to a device's memory that KVM does not take carried out by the device")
    func refusedMemory() throws {
        let machine = try KVMMachine()
        machine.loadLongMode([
            0xbb, 0x00, 0x00, 0x40, 0x00,  // mov ebx, 0x400000: behind RAM
            0x8b, 0x43, 0x08,  // 1: mov eax, [rbx+8]
            0x48, 0x89, 0x04, 0x25, 0x00, 0x80, 0x00, 0x00,  // mov [0x8000], rax
            0xeb, 0xf3,  // jmp 1b
        ])
        machine[0x4010] = 0x40_0083
        let registers = TestPorts()
        try machine.vm.addressSpace.map(registers, at: 0x40_0000, size: 0x1000, name: "registers")
        let memory = try Mapping.map(length: 8192, alignment: 4096, fd: -1, shared: false, name: "memory")
        // The kernel takes whole pages only.
        machine.vm.addressSpace.mapMemory(memory + 16, at: 0x40_0000, size: 0x1000, readOnly: false)
        #expect(machine.accelerator.failure == nil)
        try machine.vm.start()
        try machine.run(until: "an answer of the device") { machine[0x8000] == 0x48 }
        machine.vm.stop()
        machine.vm.addressSpace.unmapMemory(at: 0x40_0000)
        memory.storeBytes(of: 0x1234, toByteOffset: 8, as: UInt64.self)
        machine.vm.addressSpace.mapMemory(memory, at: 0x40_0000, size: 0x1000, readOnly: false)
        try machine.vm.start()
        try machine.run(until: "what is in memory") { machine[0x8000] == 0x1234 }
        machine.vm.stop()
        #expect(machine.accelerator.failure == nil)
    }

    @Test("counts in long mode, and stops soon")
    func counts() throws {
        let machine = try KVMMachine()
        machine.loadLongMode(KVMMachine.counter)
        try machine.vm.start()
        try machine.run(until: "counting") { machine[0x8000] > 10_000 }
        var latencies: [Int64] = []
        for _ in 0..<50 {
            let begin = EventLoop.now
            machine.vm.stop()
            latencies.append(EventLoop.now - begin)
            let stopped = machine[0x8000]
            #expect(machine[0x8000] == stopped)
            try machine.vm.start()
            try machine.run(until: "counting on") { machine[0x8000] > stopped }
        }
        latencies.sort()
        print("stop: median \(latencies[25] / 1000) us, longest \(latencies[49] / 1000) us")
        let registers = machine.accelerator.registers(ofCPU: 0)
        #expect(registers.contains("CR0=80000011"))
        #expect(registers.contains("CS64"))
        #expect(machine.vm.isRunning)
    }

    @Test("wakes from HLT by the local APIC's timer")
    func timer() throws {
        let machine = try KVMMachine()
        machine.loadLongMode(KVMMachine.ticking, handlers: KVMMachine.tickHandler)
        machine.store(KVMMachine.tick, at: 0x1800)
        try machine.vm.start()
        try machine.run(until: "20 ticks") { machine[0x8000] >= 20 }
        machine.vm.stop()
    }

    @Test("starts another CPU")
    func second() throws {
        let machine = try KVMMachine(cpus: 2)
        machine.loadLongMode(KVMMachine.startingSecond + [0xf4, 0xeb, 0xfd])
        // inc dword [0x8100]; jmp
        machine.store([0x66, 0xff, 0x06, 0x00, 0x81, 0xeb, 0xf9], at: 0xa000)
        try machine.vm.start()
        try machine.run(until: "the second CPU to count") { machine[0x8100] > 1000 }
        let ids = machine.accelerator.cpus.map(\.threadID)
        #expect(Set(ids).count == 2 && !ids.contains(0))
    }

    @Test("has accesses of two CPUs carried out one by one, over many stops")
    func twoWriters() throws {
        let machine = try KVMMachine(cpus: 2)
        machine.loadLongMode(KVMMachine.startingSecond + KVMMachine.writing)
        // mov dx, 0x101; mov al, 1; 1: out dx, al; jmp 1b
        machine.store([0xba, 0x01, 0x01, 0xb0, 0x01, 0xee, 0xeb, 0xfd], at: 0xa000)
        var (inside, overlaps, second) = (0, 0, 0)
        machine.ports.onWrite = { value in
            inside += 1
            if inside > 1 { overlaps += 1 }
            if value == 1 { second += 1 }
            inside -= 1
        }
        try machine.vm.start()
        for _ in 0..<50 {
            let (all, others) = (machine.ports.count, second)
            try machine.run(until: "both") { second > others && machine.ports.count - all > second - others }
            machine.vm.stop()
            let stopped = machine.ports.count
            #expect(inside == 0)
            #expect(machine.ports.count == stopped)
            try machine.vm.start()
        }
        #expect(overlaps == 0)
    }

    @Test("stops a guest that KVM cannot run on, and keeps it")
    func internalError() throws {
        let machine = try KVMMachine()
        // A jump to where no memory is: mov eax, 0x400000; jmp rax
        machine.loadLongMode([0xb8, 0x00, 0x00, 0x40, 0x00, 0xff, 0xe0])
        machine[0x4010] = 0x40_0083
        try machine.vm.start()
        try machine.run(until: "the error") { machine.vm.runState == .internalError }
        #expect(machine.accelerator.registers(ofCPU: 0).contains("RIP=0000000000400000"))
        #expect(machine.accelerator.cpus[0].programCounter == 0x400000)
    }

    @Test("refuses more CPUs than there can be, and says how many there can")
    func tooMany() throws {
        #expect {
            _ = try KVMMachine(cpus: 50_000)
        } throws: { "\($0)".contains("exceeds the maximum cpus supported by KVM (") }
        #expect { _ = try KVMMachine(cpus: 1 << 40) } throws: { "\($0)".contains("Invalid CPU topology") }
        #expect { _ = try KVMMachine(cpus: 256) } throws: { "\($0)".contains("254") || "\($0)".contains("maximum") }
    }

    @Test("takes a triple fault as a reset")
    func tripleFault() throws {
        let machine = try KVMMachine()
        machine.vm.noReboot = true
        machine.loadLongMode([0x0f, 0x0b])
        try machine.vm.start()
        #expect(machine.vm.run() == 0)
        #expect(machine.vm.runState == .shutdown)
    }

    @Test("begins anew after a reset")
    func reset() throws {
        let machine = try KVMMachine()
        machine.loadRealMode([0xba, 0x00, 0x01, 0xee, 0xf4, 0xeb, 0xfd])
        try machine.vm.start()
        try machine.run(until: "a write") { machine.ports.writes.count == 1 }
        try machine.vm.requestReset()
        try machine.run(until: "another") { machine.ports.writes.count == 2 }
    }

    @Test("makes threads again after they have ended")
    func threadsAgain() throws {
        let machine = try KVMMachine()
        machine.loadLongMode(KVMMachine.counter)
        try machine.vm.start()
        try machine.run(until: "counting") { machine[0x8000] > 1000 }
        machine.vm.stop()
        machine.accelerator.endThreads()
        #expect(machine.accelerator.cpus[0].threadID == 0)
        let stopped = machine[0x8000]
        try machine.vm.start()
        try machine.run(until: "counting on") { machine[0x8000] > stopped }
    }

    @Test("keeps where a CPU's thread runs", .enabled(if: KVMHost.hasGroups, "needs cgroups that can be changed"))
    func place() throws {
        let group = "/sys/fs/cgroup/cpu/baton-test-\(getpid())"
        #expect(mkdir(group, 0o755) == 0)
        defer { rmdir(group) }
        let machine = try KVMMachine()
        machine.loadLongMode(KVMMachine.counter)
        try machine.vm.start()
        let first = machine.accelerator.cpus[0].threadID
        #expect(KVMHost.write("\(first)", group + "/tasks"))
        var wanted = ckvm_scheduling()
        #expect(ckvm_get_scheduling(first, &wanted) == 0)
        wanted.nice = 5
        wanted.affinity.0 = 1
        #expect(ckvm_set_scheduling(first, &wanted) == 0)
        machine.vm.stop()
        let sections = machine.save()
        machine.accelerator.endThreads()
        try machine.accelerator.makeThreads()
        let second = try KVMMachine()
        try second.load(sections)
        try second.accelerator.makeThreads()
        for id in [machine.accelerator.cpus[0].threadID, second.accelerator.cpus[0].threadID] {
            #expect(id != first)
            #expect(KVMHost.read(group + "/tasks").split(separator: "\n").contains("\(id)"))
            var own = ckvm_scheduling()
            #expect(ckvm_get_scheduling(id, &own) == 0)
            #expect(own.nice == 5 && own.affinity.0 == 1)
        }
        machine.accelerator.endThreads()
        second.accelerator.endThreads()
    }

    @Test("sends messages of devices, by a store, an eventfd and a wire")
    func interrupts() throws {
        let machine = try KVMMachine()
        // The same program without its timer: the local APIC is on, and interrupts are counted.
        machine.loadLongMode(KVMMachine.waiting, handlers: KVMMachine.tickHandler)
        machine.store(KVMMachine.tick, at: 0x1800)
        try machine.vm.start()
        try machine.run(until: "the guest to wait") { machine[0x8010] == 1 }
        #expect(machine.vm.addressSpace.storeMessage(0x40, at: 0xfee0_0000))
        try machine.run(until: "the first") { machine[0x8000] == 1 }
        let event = cbaton_eventfd()
        defer { close(event) }
        let route = try #require(machine.accelerator.makeMessageRoute(event: event))
        var one: UInt64 = 1
        write(event, &one, 8)
        // To RAM, which is no interrupt.
        #expect(!route.set(address: 0x8000, data: 0x40))
        #expect(route.set(address: 0xfee0_0000, data: 0x40))
        try machine.run(until: "the second, which waited") { machine[0x8000] == 2 }
        route.mask()
        write(event, &one, 8)
        #expect(machine.vm.addressSpace.storeMessage(0x40, at: 0xfee0_0000))
        try machine.run(until: "the third") { machine[0x8000] == 3 }
        #expect(route.set(address: 0xfee0_0000, data: 0x40))
        try machine.run(until: "the fourth, which was masked") { machine[0x8000] == 4 }
        route.remove()
    }

    @Test("counts writes on an eventfd")
    func doorbells() throws {
        let machine = try KVMMachine()
        machine.loadRealMode([
            0xba, 0x05, 0x01, 0xb0, 0x07, 0xee, 0xee,  // mov dx, 0x105; mov al, 7; out dx, al, twice
            0xb0, 0x08, 0xee,  // mov al, 8; out dx, al
            0xf4, 0xeb, 0xfd,
        ])
        let fd = cbaton_eventfd()
        defer { close(fd) }
        let bell = Doorbell(isPort: true, address: 0x105, width: 1, value: 7, fd: fd)
        #expect(machine.accelerator.add(bell))
        try machine.vm.start()
        try machine.run(until: "the other value") { machine.ports.writes == [8] }
        var count: UInt64 = 0
        #expect(read(fd, &count, 8) == 8)
        #expect(count == 2)
        machine.accelerator.remove(bell)
    }
}
