import Foundation
import TestSupport
import Testing

/// Devices by their own files, `/dev/vfio/devices/vfioN`, and `-object iommufd`.
@Suite("vfio-pci with iommufd", .enabled(if: GuestBuilder.isAvailable, "needs the toolchain's clang and lld"))
struct VFIOIOMMUFDTests {
    private func guest(
        _ interrupts: VFIOGuest.Interrupts = .msix, _ options: [String] = [], devices: [String] = VFIOGuest.iommufd,
        extra: [String] = ["-cpr-enable", "restart"]
    ) throws -> VFIOGuest {
        try VFIOGuest(interrupts, options: options, devices: devices, extra: extra)
    }

    /// - Parameter files: which a shell opens and hands to the VMM, as its redirections.
    private func guest(opened files: String, devices: [String]) throws -> VFIOGuest {
        let directory = try TemporaryDirectory()
        let arguments = try VFIOGuest.arguments(.msix, in: directory, devices: devices)
        let shell = ["/bin/sh", "-c", "exec \"$@\" \(files)", "sh"]
        let process = try ChildProcess(VFIOGuest.simulator(directory) + shell + arguments)
        return try VFIOGuest(directory: directory, process: process, arguments: arguments)
    }

    @Test("a device found in sysfs works", arguments: VFIOGuest.Interrupts.allCases)
    func works(_ interrupts: VFIOGuest.Interrupts) throws {
        let guest = try guest(interrupts)
        try guest.waitForProgress()
        #expect(guest.requests("refused") == [] && guest.requests("fault") == [])
        let order = [
            "open_cdev vfio0", "open_iommufd", "change_process kept", "bind_iommufd id=1", "ioas_alloc id=2",
            "attach_pt id=2", "ioas_map_file ioas=2", "device_info", "reset",
        ]
        let requests = guest.requests
        let places = try order.map { name in try #require(requests.firstIndex { $0.hasPrefix(name) }, "\(name)") }
        #expect(places == places.sorted(), "\(requests)")
        #expect(requests.contains("ioas_map_file ioas=2 iova=0x80000000 size=0x1000000 rw"))
        #expect(guest.requests("ioas_map ") == [] && guest.requests("open_group") == [])
        #expect(guest.requests("set_irqs").last == "set_irqs index=\(interrupts.index) count=\(interrupts.count)")
        try guest.end()
    }

    @Test("files that others have opened are used", arguments: [false, true])
    func passedFiles(_ updates: Bool) throws {
        let guest = try guest(
            opened: "7<>/dev/vfio/devices/vfio0 8<>/dev/iommu",
            devices: ["-object", "iommufd,id=a,fd=8", "-device", "vfio-pci,id=d,fd=7,iommufd=a"])
        try guest.waitForProgress()
        #expect(guest.requests("open_").count == 2 && guest.requests("bind_iommufd").count == 1)
        if updates {
            // The numbers mean nothing to the next one, which inherits both.
            try guest.update()
            try guest.waitForProgress()
            try guest.update()
            try guest.waitForProgress()
            #expect(guest.requests("open_").count == 2 && guest.requests("change_process moved").count == 4)
        }
        #expect(guest.requests("refused") == [])
        try guest.end()
    }

    @Test("a passed device without an id is a blocker")
    func needsID() throws {
        let guest = try guest(
            opened: "7<>/dev/vfio/devices/vfio0",
            devices: ["-object", "iommufd,id=a", "-device", "vfio-pci,fd=7,iommufd=a"])
        try guest.waitForProgress()
        let error = #expect(throws: QMPClient.Refusal.self) { try guest.update() }
        #expect(error?.text.contains("vfio device with fd=7 needs an id property") == true)
        try guest.end()
    }

    @Test("memory that no file has is mapped by address")
    func withoutMapFile() throws {
        let guest = try guest(.msix, ["--lack", "map_file"])
        try guest.waitForProgress()
        #expect(guest.requests("ioas_map ").count == guest.requests("refused ioas_map_file").count)
        #expect(guest.requests("ioas_map ioas=2 iova=0x80000000 size=0x1000000 rw").count == 1)
        try guest.end()
    }

    // MARK: Updates

    @Test(
        "DMA and interrupts go on over ten updates, with nothing mapped or opened again",
        arguments: VFIOGuest.Interrupts.allCases)
    func goesOn(_ interrupts: VFIOGuest.Interrupts) throws {
        let guest = try guest(interrupts)
        try guest.waitForProgress()
        for round in 1...10 {
            let before = guest.log.count
            try guest.update()
            try guest.waitForProgress()
            // Asked by the old one, in its new process, while nothing is lost; taken by the new one.
            let since = guest.requests.dropFirst(before)
                .map { $0.split(separator: " ").prefix(2).joined(separator: " ") }
            #expect(since == ["change_process moved", "change_process moved"], "round \(round)")
        }
        #expect(Set(guest.log.filter { !$0.contains("change_process") }.map { $0.prefix { $0 != " " } }).count == 1)
        #expect(guest.requests("open_").count == 2 && guest.requests("reset").count == 1)
        #expect(guest.requests("refused") == [] && guest.requests("fault") == [])
        try guest.end()
    }

    @Test("the three steps do the same")
    func threeSteps() throws {
        let guest = try guest()
        try guest.waitForProgress()
        let file = guest.directory.file("checkpoint")
        let before = guest.log.count
        try guest.qmp.execute("cpr-save", ["filename": file, "mode": "restart"])
        try guest.qmp.execute("cont")
        try guest.waitForProgress()
        #expect(guest.log.count == before, "a save gives nothing up")
        try guest.qmp.execute("cpr-save", ["filename": file, "mode": "restart"])
        try guest.qmp.execute("cpr-exec", ["argv": guest.arguments + ["-S"]])
        // The old VMM's own, in its new process.
        #expect(guest.requests("change_process moved").count == 1, "memory is the old process' before the load")
        try guest.qmp.execute("cpr-load", ["filename": file, "mode": "restart"])
        try guest.waitForProgress()
        #expect(guest.names(since: before) == ["change_process", "change_process"])
        #expect(guest.requests.last?.hasPrefix("change_process moved") == true)
        try guest.end()
    }

    @Test("a new VMM that fails leaves the device at work in the old one", arguments: BrokenSuccessor.allCases)
    func rollback(_ successor: BrokenSuccessor) throws {
        let guest = try guest()
        try guest.waitForProgress()
        let argv = successor.arguments(guest.arguments)
        for _ in 0..<2 {
            let before = guest.log.count
            #expect(throws: QMPClient.Refusal.self) {
                try guest.update(argv, ["preflight": false, "timeout-ms": successor.milliseconds])
            }
            try guest.waitForProgress()
            // Whoever has the guest has its memory.
            let query = try #require(try guest.qmp.execute("query-cpr") as? [String: Any])
            let pid = try #require(query["pid"] as? Int)
            let changes = guest.log.dropFirst(before).filter { $0.contains("change_process") }
            #expect(changes.last?.hasPrefix("\(pid) ") != false, "\(changes)")
        }
        try guest.update()
        try guest.waitForProgress()
        #expect(guest.requests("reset").count == 1 && guest.requests("open_").count == 2)
        #expect(guest.requests("fault") == [] && guest.requests("refused") == [])
        try guest.qmp.execute("quit")
        try guest.process.waitForExit()
        #expect(guest.requests.last?.contains("faults=0") == true)
    }

    @Test("a new VMM that may not have the memory leaves it with the old one")
    func refusedChange() throws {
        // The first is at the start, the second before the exec.
        let guest = try guest(.msix, ["--refuse", "change_process=12:3"])
        try guest.waitForProgress()
        let error = #expect(throws: QMPClient.Refusal.self) { try guest.update(nil, ["preflight": false]) }
        #expect(error?.text.contains("IOMMU_IOAS_CHANGE_PROCESS fd") == true, "\(error?.text ?? "")")
        #expect(guest.requests("change_process").last?.hasPrefix("change_process kept") == true)
        try guest.waitForProgress()
        try guest.update()
        try guest.waitForProgress()
        #expect(guest.requests("fault") == [] && guest.requests("reset").count == 1)
        try guest.qmp.execute("quit")
        try guest.process.waitForExit()
    }

    @Test("memory that cannot change hands ends the update before the exec")
    func refusedCheck() throws {
        let guest = try guest(.msix, ["--refuse", "change_process=22:2"])
        try guest.waitForProgress()
        let error = #expect(throws: QMPClient.Refusal.self) { try guest.update(nil, ["preflight": false]) }
        #expect(error?.text.contains("some memory regions do not support IOMMU_IOAS_CHANGE_PROCESS") == true)
        try guest.waitForProgress()
        try guest.update()
        try guest.waitForProgress()
        try guest.qmp.execute("quit")
        try guest.process.waitForExit()
    }

    @Test("a new VMM must have the device the same way")
    func otherBackend() throws {
        let guest = try guest()
        try guest.waitForProgress()
        let before = guest.log.count
        func without(_ key: String) -> [String] { guest.arguments.map { $0.replacingOccurrences(of: key, with: "") } }
        let others = [
            without(",iommufd=iommufd0"),
            guest.arguments.map { $0.replacingOccurrences(of: "iommufd0", with: "other") },
        ]
        for (argv, text) in zip(others, ["the device is of the iommufd 'iommufd0'", "not 'other'"]) {
            let error = #expect(throws: QMPClient.Refusal.self) { try guest.update(argv) }
            #expect(error?.text.contains(text) == true, "\(error?.text ?? "")")
        }
        #expect(guest.log.count == before)
        try guest.waitForProgress()
        try guest.end()
    }

    static let blockers = [
        ("change_process", "vfio iommufd backend does not support IOMMU_IOAS_CHANGE_PROCESS"),
        ("map_file", "some memory regions do not support IOMMU_IOAS_CHANGE_PROCESS"),
    ]

    @Test("a kernel that cannot hand memory over is a blocker", arguments: blockers)
    func blocker(_ lack: String, _ text: String) throws {
        let guest = try guest(.msix, ["--lack", lack])
        try guest.waitForProgress()
        let before = guest.log.count
        let error = #expect(throws: QMPClient.Refusal.self) { try guest.update() }
        #expect(error?.text.contains(text) == true)
        #expect("\(try guest.qmp.execute("query-cpr"))".contains(text))
        #expect(guest.log.count == before)
        try guest.waitForProgress()
        try guest.end()
    }

    @Test("-only-cpr-capable refuses such a kernel at the start", arguments: blockers)
    func onlyCapable(_ lack: String, _ text: String) throws {
        let errors = try VFIOGuest.errors(
            ["--lack", lack], VFIOGuest.iommufd, ["-cpr-enable", "restart", "-only-cpr-capable"])
        #expect(errors.contains(text) && errors.contains("-only-cpr-capable"), "\(errors)")
    }

    // MARK: What cannot be

    typealias Refusal = VFIODeviceTests.Refusal

    static let refusals = [
        Refusal(
            options: ["--lack", "cdev"],
            error: "couldn't open directory /sys/bus/pci/devices/0000:06:0d.0/vfio-dev: No such file or directory"),
        Refusal(options: ["--refuse", "open_cdev=16"], error: "Failed to open /dev/vfio/devices/vfio0"),
        Refusal(
            options: ["--refuse", "open_iommufd=2"], error: "Could not open '/dev/iommu': No such file or directory"),
        Refusal(options: ["--refuse", "bind_iommufd=16"], error: "to iommufd="),
        Refusal(options: ["--refuse", "ioas_alloc=12"], error: "Failed to allocate ioas: Cannot allocate memory"),
        Refusal(options: ["--refuse", "attach_pt=22"], error: "error attach device"),
        Refusal(options: ["--refuse", "ioas_map_file=12:1"], error: "for DMA: Cannot allocate memory"),
        Refusal(options: ["--lack", "map_file", "--refuse", "ioas_map=14:1"], error: "for DMA: Bad address"),
        Refusal(options: ["--refuse", "device_info=5"], error: "error getting device info: Input/output error"),
        Refusal(
            options: ["--device", "0000:06:0d.1"], error: "no such host device: /sys/bus/pci/devices/0000:06:0d.0"),
    ]

    @Test("what the kernel refuses ends the start with its reason", arguments: refusals)
    func refused(_ refusal: Refusal) throws {
        let errors = try VFIOGuest.errors(refusal.options, VFIOGuest.iommufd)
        #expect(errors.contains("vfio \(VFIOGuest.device): ") && errors.contains(refusal.error), "\(errors)")
    }

    @Test("an address space that cannot be filled is given back")
    func givenBack() throws {
        let directory = try TemporaryDirectory()
        let arguments = try VFIOGuest.arguments(.msix, in: directory, devices: VFIOGuest.iommufd)
        let options = ["--refuse", "ioas_map_file=12:2"]
        let process = try ChildProcess(VFIOGuest.simulator(directory, options) + arguments)
        #expect(try process.waitForExit() == .status(1))
        let names = VFIOGuest.log(directory).map { $0.split(separator: " ")[1] }
        #expect(names.dropLast().suffix(3) == ["detach_pt", "ioas_unmap", "destroy"], "\(names)")
    }

    static let badValues: [([String], String)] = [
        (["-device", "vfio-pci,host=06:0d.0,iommufd=x"], "Device 'x' not found"),
        (["-device", "vfio-pci,fd=7"], "Use FD passing only with iommufd backend"),
        (["-object", "iommufd"], "Parameter 'id' is missing"),
        (["-object", "iommufd,id=a", "-object", "iommufd,id=a"], "attempt to add duplicate property 'a'"),
        (["-object", "iommufd,id=ram"], "attempt to add duplicate property 'ram'"),
        (["-object", "iommufd,id=a,color=red"], "color"),
        (
            ["-object", "iommufd,id=a,fd=99"],
            "Could not parse remote object fd 99: Invalid file descriptor number '99'"
        ),
        (["-object", "iommufd,id=a,fd=1x"], "Invalid file descriptor number '1x'"),
        (["-object", "iommufd,id=a,fd=x"], "File descriptor named 'x' has not been found"),
        (
            ["-object", "iommufd,id=a", "-device", "vfio-pci,fd=99,id=d,iommufd=a"],
            "vfio d: Could not parse remote object fd 99: Invalid file descriptor number '99'"
        ),
        (
            ["-object", "iommufd,id=a", "-device", "vfio-pci,fd=0,id=d,iommufd=a"], "vfio d: error bind device fd=0"
        ),
        (
            ["-object", "iommufd,id=a,fd=0", "-device", "vfio-pci,host=06:0d.0,iommufd=a"],
            "vfio 0000:06:0d.0: error bind device fd="
        ),
    ]

    @Test("the object is in the list of what can be created")
    func help() throws {
        let process = try ChildProcess([Products.baton, "-object", "help"])
        #expect(try process.waitForExit() == .status(0))
        #expect(process.output.contains("  iommufd "), "\(process.output)")
    }

    @Test("bad options are refused with QEMU's words", arguments: badValues)
    func badValue(_ devices: [String], _ error: String) throws {
        let errors = try VFIOGuest.errors([], devices)
        #expect(errors.contains(error), "\(errors)")
    }
}
