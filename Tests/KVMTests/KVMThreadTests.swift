import BatonDevices
import BatonRuntime
import CKVM
import Glibc
import KVM
import Testing

/// CPUs' threads keep their place over updates.
@Suite("KVM's threads", .serialized, .enabled(if: KVMHost.isUsable, "needs a /dev/kvm that can be used"))
struct KVMThreadTests {
    private func running(_ cpus: Int = 1) throws -> KVMMachine {
        let machine = try KVMMachine(cpus: cpus)
        machine.loadLongMode(KVMMachine.counter)
        try machine.vm.start()
        try machine.run(until: "counting") { machine[0x8000] > 100 }
        return machine
    }

    private func next(after machine: KVMMachine) throws -> KVMMachine {
        machine.vm.stop()
        let next = try KVMMachine(cpus: machine.accelerator.cpus.count)
        next.ram.host.copyMemory(from: machine.ram.host, byteCount: KVMMachine.ramSize)
        try next.load(machine.save())
        let counted = next[0x8000]
        try next.vm.start()
        try next.run(until: "counting on") { next[0x8000] > counted }
        return next
    }

    private func place(_ machine: KVMMachine, _ cpu: Int = 0) -> ckvm_scheduling {
        var found = ckvm_scheduling()
        #expect(ckvm_get_scheduling(machine.accelerator.cpus[cpu].threadID, &found) == 0)
        return found
    }

    private func affinity(_ place: ckvm_scheduling) -> [UInt8] {
        var place = place
        let length = Int(place.affinity_length)
        return withUnsafeBytes(of: &place.affinity) { Array($0.prefix(length)) }
    }

    @Test("affinity, policy and niceness go to the next thread, of this process and of the next")
    func scheduling() throws {
        let machine = try running(2)
        var wanted = place(machine, 1)
        // The lowest processor alone, SCHED_BATCH, and a niceness that anybody may ask for.
        let bytes = affinity(wanted)
        let first = try #require(bytes.firstIndex { $0 != 0 })
        withUnsafeMutableBytes(of: &wanted.affinity) { bits in
            for index in 0..<bytes.count { bits[index] = index == first ? bytes[first] & (~bytes[first] &+ 1) : 0 }
        }
        (wanted.policy, wanted.nice) = (3, 7)
        #expect(ckvm_set_scheduling(machine.accelerator.cpus[1].threadID, &wanted) == 0)
        let other = place(machine, 0)
        // As over an exec: threads end and are made anew.
        machine.vm.stop()
        let before = machine.accelerator.cpus.map(\.threadID)
        machine.accelerator.endThreads()
        try machine.vm.start()
        #expect(Set(machine.accelerator.cpus.map(\.threadID)).isDisjoint(with: before))
        let successor = try next(after: machine)
        for current in [machine, successor] {
            let found = place(current, 1)
            #expect(affinity(found) == affinity(wanted) && found.policy == 3 && found.nice == 7)
            #expect(affinity(place(current, 0)) == affinity(other) && place(current, 0).policy == other.policy)
        }
    }

    @Test("a real-time policy goes along")
    func realTime() throws {
        let machine = try running()
        var wanted = place(machine)
        (wanted.policy, wanted.priority) = (Int32(SCHED_RR), 3)
        let code = ckvm_set_scheduling(machine.accelerator.cpus[0].threadID, &wanted)
        // Not everybody may.
        try #require(code == 0 || code == EPERM)
        guard code == 0 else { return }
        let found = place(try next(after: machine))
        #expect(found.policy == wanted.policy && found.priority == wanted.priority)
    }

    @Test("a place that is not allowed is refused before the guest is taken over")
    func refusal() throws {
        let next = try KVMMachine()
        try next.load(sections(of: running()) { _ in })
        #expect(throws: VMMError.self) { try next.accelerator.makeThreads() }
        #expect(next.accelerator.cpus[0].threadID == 0)
    }

    /// A state with a place of the CPU's thread that nobody can have, for a process of that id.
    private func sections(
        of machine: KVMMachine, _ process: (inout [UInt8]) -> Void
    ) throws -> [KVMMachine.Section] {
        var own = place(machine)
        own.nice = 3
        #expect(ckvm_set_scheduling(machine.accelerator.cpus[0].threadID, &own) == 0)
        machine.vm.stop()
        var sections = machine.save()
        let place = try #require(sections.firstIndex { $0.name == "cpu0" })
        sections[place] = try KVMMachine.changed(sections[place], "thread-affinity") { bytes in
            for index in bytes.indices { bytes[index] = 0 }
        }
        sections[place] = try KVMMachine.changed(sections[place], "thread-process", process)
        return sections
    }

    @Test("the place of another process' thread is given up where it cannot be had, and the guest goes on")
    func otherProcess() throws {
        let next = try KVMMachine()
        try next.load(sections(of: running()) { bytes in bytes[0] ^= 1 })
        try next.accelerator.makeThreads()
        #expect(next.accelerator.cpus[0].threadID != 0)
    }

    @Test("a thread that is where its process is has no place of its own")
    func processPlace() throws {
        let machine = try running()
        machine.vm.stop()
        let section = try #require(machine.save().first { $0.name == "cpu0" })
        let names = try KVMMachine.fields(section).map(\.0)
        #expect(!names.contains { $0.hasPrefix("thread-") })
    }

    @Test("a cgroup of a thread's own goes along")
    func cgroup() throws {
        let directory = "/sys/fs/cgroup/cpu/baton-test-\(getpid())"
        guard mkdir(directory, 0o755) == 0 else { return }
        defer { rmdir(directory) }
        do {
            let machine = try running()
            let thread = machine.accelerator.cpus[0].threadID
            let file = fopen(directory + "/tasks", "w")
            guard let file, fputs("\(thread)", file) >= 0, fclose(file) == 0 else { return }
            let successor = try next(after: machine)
            let id = successor.accelerator.cpus[0].threadID
            #expect(id != thread && groups(id).contains("baton-test-\(getpid())"))
            #expect(!groups(getpid()).contains("baton-test-"))
            successor.vm.stop()
            successor.accelerator.endThreads()
            machine.accelerator.endThreads()
        }
    }

    private func groups(_ thread: Int32) -> String {
        guard let file = fopen("/proc/self/task/\(thread)/cgroup", "r") else { return "" }
        defer { fclose(file) }
        var bytes = [UInt8](repeating: 0, count: 8192)
        let count = fread(&bytes, 1, bytes.count, file)
        return String(decoding: bytes.prefix(count), as: UTF8.self)
    }
}
