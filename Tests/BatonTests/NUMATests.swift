import Foundation
import TestSupport
import Testing

/// `-numa`, and where the host takes memory from: `host-nodes=`, `policy=` and huge pages.
@Suite(
    "NUMA nodes and huge pages", .enabled(if: GuestBuilder.isAvailable, "needs clang and ld.lld of the Swift toolchain")
)
struct NUMATests {
    let directory: TemporaryDirectory

    init() throws { directory = try TemporaryDirectory() }

    private static func memfd(_ id: String, _ size: String) -> [String] {
        ["-object", "memory-backend-memfd,id=\(id),size=\(size)"]
    }

    /// What a VMM says that cannot start.
    private func complaint(_ arguments: [String]) throws -> String {
        let process = try ChildProcess([Products.baton, "-nodefaults", "-M", "virt", "-m", "64M"] + arguments)
        #expect(try process.waitForExit() == .status(1), "\(process.output)")
        return process.errors
    }

    private static let hasCompiler = Products.find("dtc") != nil

    @Test(
        "The device tree has the nodes of CPUs and memory, and the distances, as QEMU's",
        .enabled(if: hasCompiler, "needs dtc"))
    func tree() throws {
        let blob = directory.file("dtb")
        try ChildProcess.run(
            [Products.baton, "-nodefaults", "-M", "virt,dumpdtb=\(blob)", "-m", "96M", "-smp", "4"]
                + Self.memfd("a", "64M") + Self.memfd("b", "32M")
                + [
                    "-numa", "node,cpus=0,cpus=2-3,memdev=a", "-numa", "node,nodeid=1,memdev=b", "-numa",
                    "cpu,node-id=1,thread-id=1", "-numa", "dist,src=0,dst=1,val=21",
                ])
        let text = try ChildProcess.run(["dtc", "-q", "-I", "dtb", "-O", "dts", blob])
        /// The text of a node, without those in it.
        func node(_ name: String) throws -> String {
            let start = try #require(text.range(of: "\(name) {"), "\(name) in \(text)")
            return String(text[start.upperBound...].prefix { $0 != "{" && $0 != "}" })
        }
        #expect(try node("memory@80000000").contains("reg = <0x00 0x80000000 0x00 0x4000000>"))
        #expect(try node("memory@80000000").contains("numa-node-id = <0x00>"))
        #expect(try node("memory@84000000").contains("reg = <0x00 0x84000000 0x00 0x2000000>"))
        #expect(try node("memory@84000000").contains("numa-node-id = <0x01>"))
        for (cpu, id) in [0, 1, 0, 0].enumerated() {
            #expect(try node("cpu@\(cpu)").contains("numa-node-id = <0x0\(id)>"))
        }
        #expect(try node("distance-map").contains("compatible = \"numa-distance-map-v1\""))
        let matrix = "<0x00 0x00 0x0a 0x00 0x01 0x15 0x01 0x00 0x15 0x01 0x01 0x0a>"
        #expect(try node("distance-map").contains("distance-matrix = \(matrix)"))
    }

    @Test(
        "QEMU's errors",
        arguments: [
            ("-numa node,nodeid=128", "Max number of NUMA nodes reached: 128"),
            ("-numa node,nodeid=1 -numa node,nodeid=1", "Duplicate NUMA nodeid: 1"),
            ("-numa node,cpus=0-1", "CPU index (1) should be smaller than maxcpus (1)"),
            ("-smp 2 -numa node,cpus=0 -numa node,cpus=0-1", "CPU is already assigned to node-id: 0"),
            ("-numa node,mem=64M", "Parameter -numa node,mem is not supported"),
            ("-numa cpu,thread-id=0", "Missing mandatory node-id property"),
            ("-numa cpu,node-id=0,thread-id=0", "NUMA node must be defined with -numa node,nodeid=ID"),
            ("-numa node -numa cpu,node-id=0,socket-id=0", "socket-id is not supported"),
            ("-numa node -numa cpu,node-id=0,thread-id=1", "no match found"),
            ("-numa node -numa dist,src=0,dst=1,val=20", "Source/Destination NUMA node is missing"),
            ("-numa node -numa dist,src=0,dst=0,val=11", "Local distance of node 0 should be 10"),
            ("-numa node -numa node -numa dist,src=0,dst=1,val=9", "it shouldn't be less than 10"),
            ("-numa nodes", "does not accept value 'nodes'"), ("-numa node,size=1", "Invalid parameter 'size'"),
            ("-numa node,nodeid=1", "numa: Node ID missing: 0"),
            ("-numa node,memdev=a -numa node", "memdev option must be specified for either all or no nodes"),
            ("-numa node,memdev=c", "Memory backend 'c' not found"),
            ("-numa node,memdev=a -numa node,memdev=a", "memory backend 'a' can't be used multiple times"),
            ("-numa node,memdev=a", "total memory for NUMA nodes (0x2000000) should equal RAM size (0x4000000)"),
            ("-M memory-backend=a -numa node,memdev=b", "mutually exclusive"),
            (
                "-numa node,memdev=a -numa node,memdev=b -numa node,memdev=b -numa dist,src=0,dst=1,val=20",
                "The distance between node 0 and 2 is missing"
            ),
            (
                "-object memory-backend-ram,id=r,size=1M,policy=interleave",
                "host-nodes must be set for policy interleave"
            ),
            ("-object memory-backend-ram,id=r,size=1M,host-nodes=0", "host-nodes must be empty for policy default"),
            (
                "-object memory-backend-ram,id=r,size=1M,host-nodes=128,policy=bind",
                "Invalid host-nodes value: 128"
            ),
            (
                "-object memory-backend-ram,id=r,size=1M,host-nodes=127,policy=bind",
                "cannot bind memory to host NUMA nodes"
            ),
        ])
    func errors(_ arguments: String, _ text: String) throws {
        let said = try complaint(
            Self.memfd("a", "32M") + Self.memfd("b", "32M") + arguments.split(separator: " ").map(String.init))
        #expect(said.contains(text), "\(said)")
    }

    /// A guest in memory of two nodes, whose page of figures is in the second one.
    private func guest(_ first: [String], _ second: [String], _ more: [String] = []) throws -> (
        ChildProcess, QMPClient, [String]
    ) {
        let arguments =
            [
                Products.baton, "-M", "virt", "-m", "16M", "-smp", "2", "-bios", "none", "-kernel",
                try CountingGuest.image(), "-nodefaults", "-nographic", "-serial", "file:\(directory.file("serial"))",
                "-qmp", "unix:\(directory.file("qmp")),server=on,wait=off", "-sandbox", "paths=\(directory.path)",
                "-cpr-enable", "restart",
            ] + first + second + more
        let process = try ChildProcess(arguments)
        return (process, try QMPClient(path: directory.file("qmp"), of: process), arguments)
    }

    private func say(_ qmp: QMPClient, _ line: String) throws -> String {
        try qmp.execute("human-monitor-command", ["command-line": line]) as? String ?? ""
    }

    private func count(_ qmp: QMPClient) throws -> UInt64 {
        let text = try say(qmp, "xp /1gx 0x80400008")
        return text.split(separator: "x").last.flatMap { UInt64($0.prefix(16), radix: 16) } ?? 0
    }

    private func goesOn(_ qmp: QMPClient, _ process: ChildProcess) throws {
        let before = try count(qmp)
        try eventually("the guest counts past \(before); \(process.report)") { try count(qmp) > before }
    }

    @Test("A guest in two nodes goes over updates, and through a checkpoint")
    func updates() throws {
        let (process, qmp, arguments) = try guest(
            Self.memfd("a", "4M"), Self.memfd("b", "12M"),
            ["-numa", "node,memdev=a", "-numa", "node,memdev=b", "-cpr-enable", "reboot"])
        try goesOn(qmp, process)
        #expect(
            try say(qmp, "info numa")
                == "2 nodes\nnode 0 cpus: 0\nnode 0 size: 4 MB\nnode 0 plugged: 0 MB\n"
                + "node 1 cpus: 1\nnode 1 size: 12 MB\nnode 1 plugged: 0 MB\n")
        let cpus = try qmp.execute("query-cpus-fast") as? [[String: Any]]
        #expect(cpus?.compactMap { ($0["props"] as? [String: Any])?["node-id"] as? Int } == [0, 1])
        for _ in 0..<3 {
            try qmp.execute("cpr-update", ["argv": arguments])
            try goesOn(qmp, process)
        }
        let state = directory.file("state")
        try qmp.execute("migrate-set-parameters", ["mode": "cpr-reboot"])
        try qmp.execute("migrate", ["uri": "file:\(state)"])
        try eventually("the state is saved; \(process.report)") { try qmp.status() == "postmigrate" }
        let before = try count(qmp)
        try qmp.execute("quit")
        #expect(try process.waitForExit() == .status(0), "\(process.report)")
        let next = try ChildProcess(arguments + ["-incoming", "defer"])
        let client = try QMPClient(path: directory.file("qmp"), of: next)
        try client.execute("migrate-set-parameters", ["mode": "cpr-reboot"])
        try client.execute("migrate-incoming", ["uri": "file:\(state)"])
        try eventually("the guest runs; \(next.report)") { try client.status() == "running" }
        #expect(try count(client) >= before)
        try goesOn(client, next)
        try client.execute("quit")
        #expect(try next.waitForExit() == .status(0), "\(next.report)")
    }

    @Test("A disk's buffers may go from one node to the next")
    func disk() throws {
        // Of any size, so that a boundary is in the guest's buffers wherever they are.
        for kilobytes in [1028, 1096, 1160] {
            let disk = try directory.writeSparse("disk\(kilobytes)", size: DiskGuest.size)
            let guest = try DiskGuest(
                in: directory, disk: disk,
                memory: Self.memfd("a", "\(kilobytes)K")
                    + Self.memfd("b", "\(16384 - kilobytes)K") + ["-numa", "node,memdev=a", "-numa", "node,memdev=b"])
            try guest.waitForProgress()
            try guest.update()
            try guest.waitForProgress()
            try guest.end()
            try FileManager.default.removeItem(atPath: directory.file("serial"))
        }
    }

    @Test("Memory is bound to a node of the host's")
    func policy() throws {
        let (process, qmp, arguments) = try guest(
            ["-object", "memory-backend-memfd,id=ram,size=16M,host-nodes=0,policy=bind,prealloc=on"],
            ["-machine", "memory-backend=ram"])
        let memory = try (qmp.execute("query-memdev") as? [[String: Any]])?.first
        #expect(memory?["policy"] as? String == "bind" && memory?["host-nodes"] as? [Int] == [0])
        #expect(try say(qmp, "info memdev").contains("policy: bind\n  host nodes: 0\n"))
        let maps = try String(contentsOfFile: "/proc/\(process.pid)/numa_maps", encoding: .utf8)
        #expect(maps.contains("bind:0"), "\(maps)")
        try qmp.execute("cpr-update", ["argv": arguments])
        try goesOn(qmp, process)
        try qmp.execute("quit")
        #expect(try process.waitForExit() == .status(0))
    }

    // MARK: Huge pages

    private static let freePages = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages"
    private static let allPages = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"

    private static func number(_ path: String) -> Int {
        (try? String(contentsOfFile: path, encoding: .utf8)).flatMap {
            Int($0.trimmingCharacters(in: .whitespacesAndNewlines))
        } ?? 0
    }

    /// Whether a host gives 16 pages of 2 MiB, perhaps as it is asked to.
    private static let hasHugePages: Bool = {
        if number(freePages) >= 16 { return true }
        guard geteuid() == 0 else { return false }
        let before = number(allPages)
        defer { try? "\(before)".write(toFile: allPages, atomically: false, encoding: .utf8) }
        try? "\(before + 16)".write(toFile: allPages, atomically: false, encoding: .utf8)
        return number(freePages) >= 16
    }()

    @Test(
        "Memory of huge pages goes over an update, which needs none more",
        .enabled(if: hasHugePages, "needs 16 huge pages of 2 MiB, or root on a host that has room for them"))
    func hugePages() throws {
        let before = Self.number(Self.allPages)
        if Self.number(Self.freePages) < 16 {
            try "\(before + 16)".write(toFile: Self.allPages, atomically: false, encoding: .utf8)
        }
        defer { try? "\(before)".write(toFile: Self.allPages, atomically: false, encoding: .utf8) }
        let free = Self.number(Self.freePages)
        try #require(free >= 16)
        // 9 MiB are five pages.
        let memory = ["-object", "memory-backend-memfd,id=ram,size=9M,hugetlb=on,hugetlbsize=2M"]
        let (process, qmp, arguments) = try guest(memory, ["-machine", "memory-backend=ram", "-m", "9M"])
        try goesOn(qmp, process)
        func reserved() -> Int {
            Self.number("/sys/kernel/mm/hugepages/hugepages-2048kB/resv_hugepages") + free - Self.number(Self.freePages)
        }
        #expect(reserved() == 5)
        for round in 0..<3 {
            try qmp.execute("cpr-update", ["argv": arguments, "preflight": round < 2])
            try goesOn(qmp, process)
            #expect(reserved() == 5)
        }
        let maps = try String(contentsOfFile: "/proc/\(process.pid)/numa_maps", encoding: .utf8)
        #expect(maps.contains("huge") && maps.contains("memory-backend-memfd"), "\(maps)")
        // Without huge pages it is other memory.
        let answer = refusal {
            try qmp.execute(
                "cpr-update",
                ["argv": arguments.map { $0.replacingOccurrences(of: ",hugetlb=on,hugetlbsize=2M", with: "") }])
        }
        #expect(answer.contains("RAM block 'ram' has maximum length"), "\(answer)")
        try qmp.execute("quit")
        #expect(try process.waitForExit() == .status(0))
        #expect(Self.number(Self.freePages) == free)
    }

    @Test("A host that has too few of them says so")
    func fewHugePages() throws {
        let said = try complaint(["-object", "memory-backend-memfd,id=r,size=32T,hugetlb=on,hugetlbsize=2M"])
        #expect(said.contains("cannot set up guest memory 'r'") && said.contains("nr_hugepages"), "\(said)")
        #expect(
            try complaint(["-object", "memory-backend-memfd,id=r,size=2M,hugetlb=on,hugetlbsize=3M"])
                .contains("the host has no huge pages of 3145728 bytes"))
    }
}
