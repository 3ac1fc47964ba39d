import BatonDevices
import BatonRuntime
import Glibc
import KVM
import Testing

/// A guest's state in a second VM of KVM's.
@Suite("KVM's state", .serialized, .enabled(if: KVMHost.isUsable, "needs a /dev/kvm that can be used"))
struct KVMStateTests {
    private func copyRAM(_ from: KVMMachine, _ to: KVMMachine) {
        to.ram.host.copyMemory(from: from.ram.host, byteCount: KVMMachine.ramSize)
    }

    /// Fields that tell of the time of saving.
    private static let timed: Set = ["host-tsc", "clock", "host-time", "tsc-offset", "ages"]

    @Test("goes over to a second VM, which counts on", arguments: 1...3)
    func roundTrip(_ round: Int) throws {
        let first = try KVMMachine()
        first.loadLongMode(KVMMachine.counter)
        try first.vm.start()
        try first.run(until: "counting") { first[0x8000] > UInt64(1000 * round) }
        first.vm.stop()
        let second = try KVMMachine()
        copyRAM(first, second)
        let sections = first.save()
        try second.load(sections)
        for (one, other) in zip(sections, second.save()) {
            let (one, other) = (try KVMMachine.fields(one), try KVMMachine.fields(other))
            for field in one where !KVMStateTests.timed.contains(field.name) && !field.name.hasPrefix("thread-") {
                #expect(other.contains { $0.name == field.name && $0.payload == field.payload }, "\(field.name)")
            }
        }
        let stopped = second[0x8000]
        try second.vm.start()
        try second.run(until: "counting on") { second[0x8000] > stopped }
        #expect(first[0x8000] == stopped)
    }

    @Test("keeps a timer that ticks")
    func timer() throws {
        let first = try KVMMachine()
        first.loadLongMode(KVMMachine.ticking, handlers: KVMMachine.tickHandler)
        first.store(KVMMachine.tick, at: 0x1800)
        try first.vm.start()
        try first.run(until: "ticks") { first[0x8000] >= 5 }
        first.vm.stop()
        let second = try KVMMachine()
        copyRAM(first, second)
        try second.load(first.save())
        let stopped = second[0x8000]
        try second.vm.start()
        try second.run(until: "more ticks") { second[0x8000] >= stopped + 5 }
        // And over a CPU that has run.
        second.vm.stop()
        try second.load(first.save())
        copyRAM(first, second)
        try second.vm.start()
        try second.run(until: "more ticks again") { second[0x8000] >= stopped + 5 }
    }

    /// When a timer runs out that counts down once.
    enum RunsOut: UInt32, CaseIterable {
        // Nanoseconds.
        case running = 1000, stopped = 50_000_000, afterwards = 200_000_000
    }

    @Test("neither loses nor doubles the interrupt of a timer that runs out once", arguments: RunsOut.allCases)
    func timerThatRunsOutOnce(_ when: RunsOut) throws {
        let first = try KVMMachine()
        first.loadLongMode(KVMMachine.countingDown(when.rawValue), handlers: KVMMachine.tickHandler)
        first.store(KVMMachine.tick, at: 0x1800)
        try first.vm.start()
        try first.run(until: "counting") { first[0x8010] > 0 && (when != .running || first[0x8000] > 0) }
        first.vm.stop()
        var sections = first.save()
        // Until what is left of the time is the least that there is.
        while when == .stopped, first[0x8000] == 0, try KVMStateTests.timerCount(sections) > 1 {
            sections = first.save()
        }
        let second = try KVMMachine()
        copyRAM(first, second)
        try second.load(sections)
        try second.vm.start()
        try second.run(until: "the interrupt") { second[0x8000] > 0 }
        let seen = second[0x8010]
        try second.run(until: "counting on") { second[0x8010] > seen + 10_000 }
        #expect(second[0x8000] == 1)
    }

    /// The current count of the first CPU's timer.
    private static func timerCount(_ sections: [KVMMachine.Section]) throws -> UInt32 {
        let lapic = try #require(try KVMMachine.fields(sections[0]).first { $0.name == "lapic" }).payload
        return lapic[0x390..<0x394].reversed().reduce(0) { $0 << 8 | UInt32($1) }
    }

    @Test("neither loses nor doubles an interrupt of a wire that is high")
    func wires() throws {
        let first = try KVMMachine()
        first.loadLongMode(KVMMachine.waitingForEdge, handlers: KVMMachine.tickHandler)
        first.store(KVMMachine.tick, at: 0x1800)
        let line = first.accelerator.line(gsi: 5)
        try first.vm.start()
        try first.run(until: "the guest to wait") { first[0x8010] == 1 }
        line.set(true)
        try first.run(until: "the interrupt") { first[0x8000] == 1 }
        first.vm.stop()
        let second = try KVMMachine()
        copyRAM(first, second)
        try second.load(first.save())
        // The device, which has loaded its own state, says again what it had said.
        let again = second.accelerator.line(gsi: 5)
        again.set(true)
        try second.vm.start()
        // What comes by another way, afterwards, is the second.
        #expect(second.vm.addressSpace.storeMessage(0x40, at: 0xfee0_0000))
        try second.run(until: "a message") { second[0x8000] >= 2 }
        #expect(second[0x8000] == 2)
        again.set(false)
        again.set(true)
        try second.run(until: "the next edge") { second[0x8000] == 3 }
    }

    @Test("has what the kernel does not list")
    func unlisted() throws {
        let machine = try KVMMachine()
        machine.vm.resetDevices()
        let field = try #require(try KVMMachine.fields(machine.save()[0]).first { $0.name == "msrs" })
        let numbers = stride(from: 0, to: field.payload.count, by: 16).map { place in
            field.payload[place..<place + 4].reversed().reduce(0) { $0 << 8 | Int($1) }
        }
        #expect(Set(numbers).count == numbers.count)
        // How memory is cached, by default.
        #expect(numbers.contains(0x2ff))
        #expect(!numbers.contains(0x4b56_4d00))
    }

    @Test("has no access in hand: what a device has answered has arrived")
    func accesses() throws {
        var machine = try KVMMachine()
        let code: [UInt8] = [
            0xba, 0x04, 0x01, 0x31, 0xdb,  // mov dx, 0x104; xor bx, bx
            0xec, 0x38, 0xd8, 0x75, 0x04, 0xfe, 0xc3, 0xeb, 0xf7,  // 1: in al, dx; cmp al, bl; jne 2f; inc bl; jmp 1b
            0xba, 0x00, 0x01, 0xee, 0xf4, 0xeb, 0xfd,  // 2: mov dx, 0x100; out dx, al; hlt
        ]
        machine.loadRealMode(code)
        for _ in 0..<20 {
            let seen = machine.ports.next
            try machine.vm.start()
            try machine.run(until: "reads") { machine.ports.next > seen + 500 }
            machine.vm.stop()
            #expect(machine.ports.writes.isEmpty)
            let successor = try KVMMachine()
            successor.loadRealMode(code)
            copyRAM(machine, successor)
            try successor.load(machine.save())
            successor.ports.next = machine.ports.next
            machine = successor
        }
    }

    @Test("gives the second VM the same time-stamp counter")
    func time() throws {
        let first = try KVMMachine()
        // rdtsc; shl rdx, 32; or rax, rdx; mov [0x8000], rax; jmp
        let code: [UInt8] = [
            0x0f, 0x31, 0x48, 0xc1, 0xe2, 0x20, 0x48, 0x09, 0xd0, 0x48, 0x89, 0x04, 0x25, 0x00, 0x80, 0, 0, 0xeb, 0xed,
        ]
        first.loadLongMode(code)
        try first.vm.start()
        try first.run(until: "time") { first[0x8000] > 0 }
        first.vm.stop()
        let before = first[0x8000]
        let second = try KVMMachine()
        copyRAM(first, second)
        try second.load(first.save())
        try second.vm.start()
        try second.run(until: "more time") { second[0x8000] != before }
        let frequency = try #require(second.accelerator.timeStampFrequency)
        #expect(second[0x8000] > before)
        #expect(second[0x8000] - before < 20 * frequency)
    }

    @Test(
        "is refused by name, and changes nothing",
        arguments: [
            ("xsave", 0), ("xsave", 26), ("xsave", 519), ("msrs", 0), ("lapic", -1), ("cr0", 4), ("cr8", 1), ("cs", 40),
            ("debug", 36), ("mp-state", 0), ("exception", 8), ("event-flags", 1), ("cpuid", 24), ("rflags", 3),
            ("apic-base", 0), ("gdt", 10), ("xcrs", 15),
        ])
    func hostile(_ field: String, _ place: Int) throws {
        let machine = try KVMMachine()
        machine.loadLongMode(KVMMachine.counter)
        try machine.vm.start()
        try machine.run(until: "counting") { machine[0x8000] > 0 }
        machine.vm.stop()
        let section = machine.save()[0]
        let changed = try KVMMachine.changed(section, field) { payload in
            if field == "xsave", place == 0 { payload.removeLast() }
            if place < 0 { payload.removeLast() } else if payload.indices.contains(place) { payload[place] = 0xff }
            if field == "cs" { payload.removeLast(8) }
        }
        let reader = try StateReader(section: "cpu0", version: 1, payload: changed.payload[...])
        #expect {
            _ = try machine.vm.devices[0].loader(of: reader)
        } throws: { error in
            // CPUID is told by the leaf that differs.
            let text = "\(error)"
            return text.contains("'\(field)'") || (field == "cpuid" && text.contains("CPUID["))
        }
        let after = machine.save()[0]
        #expect(after.payload == section.payload)
    }

    @Test("that the kernel does not take is a failure with its name, until another is set")
    func refusedByKernel() throws {
        let machine = try KVMMachine()
        machine.vm.resetDevices()
        var sections = machine.save()
        let good = sections
        // An address that is not canonical, in LSTAR.
        sections[0] = try KVMMachine.changed(sections[0], "msrs") { payload in
            for place in stride(from: 0, to: payload.count, by: 16)
            where payload[place..<place + 4].elementsEqual([0x82, 0, 0, 0xc0]) {
                payload[place + 15] = 0x40
            }
        }
        do {
            try machine.load(sections)
            Issue.record("the state was taken")
        } catch {
            #expect("\(error)".contains("MSR 0xc0000082"))
        }
        #expect(machine.accelerator.failure != nil)
        try machine.load(good)
        #expect(machine.accelerator.failure == nil)
    }
}
