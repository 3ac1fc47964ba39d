import Foundation
import TestSupport
import Testing

/// Devices that share a group, a container or an iommufd, or do not.
@Suite("several vfio-pci devices", .enabled(if: GuestBuilder.isAvailable, "needs the toolchain's clang and lld"))
struct VFIOSeveralDevicesTests {
    /// Two functions of a slot in one group, and a third device in another.
    static let names = ["0000:06:0d.0", "0000:06:0d.1", "0000:07:00.0"]
    static let simulated = ["--device", names[0], "--device", names[1], "--device", names[2], "--group", "9"]

    /// How the three devices get their memory.
    enum Arrangement: String, CaseIterable {
        case oneContainer, twoContainers, oneIOMMUFD, twoIOMMUFDs, twoAddressSpaces, mixed

        /// Of the simulator.
        var options: [String] {
            switch self {
            // The second group does not fit into the first container.
            case .twoContainers: simulated + ["--refuse", "set_container=22:2"]
            case .twoAddressSpaces: simulated + ["--refuse", "attach_pt=22:3"]
            default: simulated
            }
        }

        var devices: [String] {
            let objects = ["-object", "iommufd,id=a", "-object", "iommufd,id=b"]
            func device(_ index: Int, _ iommufd: String?) -> [String] {
                ["-device", "vfio-pci,host=\(names[index])" + (iommufd.map { ",iommufd=\($0)" } ?? "")]
            }
            switch self {
            case .oneContainer, .twoContainers: return device(0, nil) + device(1, nil) + device(2, nil)
            case .oneIOMMUFD, .twoAddressSpaces: return objects + device(0, "a") + device(1, "a") + device(2, "a")
            case .twoIOMMUFDs: return objects + device(0, "a") + device(1, "a") + device(2, "b")
            case .mixed: return objects + device(0, "a") + device(1, "a") + device(2, nil)
            }
        }

        var containers: Int {
            switch self {
            case .oneContainer, .mixed: 1
            case .twoContainers: 2
            default: 0
            }
        }
        var iommufds: Int {
            switch self {
            case .oneIOMMUFD, .twoAddressSpaces, .mixed: 1
            case .twoIOMMUFDs: 2
            default: 0
            }
        }
        /// How often all of guest memory is mapped.
        var spaces: Int { self == .twoAddressSpaces ? 2 : containers + iommufds }
    }

    private func guest(
        _ arrangement: Arrangement, _ interrupts: VFIOGuest.Interrupts = .msix, _ options: [String] = []
    ) throws -> VFIOGuest {
        try VFIOGuest(interrupts, options: arrangement.options + options, devices: arrangement.devices)
    }

    /// Requests for main memory, which each address space has once.
    private func mappings(_ guest: VFIOGuest, _ name: String) -> Int {
        guest.requests(name).count { $0.contains("iova=0x80000000 size=0x1000000") }
    }

    @Test("each does DMA and interrupts", arguments: Arrangement.allCases, [VFIOGuest.Interrupts.msix, .intx])
    func works(_ arrangement: Arrangement, _ interrupts: VFIOGuest.Interrupts) throws {
        let guest = try guest(arrangement, interrupts)
        try guest.waitForProgress()
        #expect(guest.requests("open_container").count == arrangement.containers)
        #expect(guest.requests("open_iommufd").count == arrangement.iommufds)
        #expect(mappings(guest, "map_dma") + mappings(guest, "ioas_map_file") == arrangement.spaces)
        #expect(guest.requests("refused").count == arrangement.options.count { $0 == "--refuse" })
        for name in Self.names { #expect(guest.requests("reset device=\(name)").count == 1) }
        #expect(guest.requests("fault") == [])
        try guest.end()
    }

    @Test("all go on over ten updates", arguments: Arrangement.allCases)
    func updates(_ arrangement: Arrangement) throws {
        let guest = try guest(arrangement)
        try guest.waitForProgress()
        let refused = guest.requests("refused")
        for round in 1...10 {
            let before = guest.log.count
            try guest.update()
            try guest.waitForProgress()
            let since = guest.requests.dropFirst(before)
            #expect(since.count { $0.hasPrefix("unmap_vaddr") } == arrangement.containers, "round \(round): \(since)")
            #expect(since.count { $0.hasPrefix("change_process moved") } == 2 * arrangement.iommufds)
            #expect(since.count { $0.hasPrefix("map_vaddr iova=0x80000000") } == arrangement.containers)
            // Nobody has its addresses back before everybody has given them up.
            let lines = guest.log.dropFirst(before)
            let own = (guest.log.first?.prefix { $0 != " " } ?? "") + " "
            let given = lines.lastIndex { !$0.hasPrefix(own) }
            let taken = lines.firstIndex { $0.hasPrefix(own) }
            #expect(try #require(given) < #require(taken))
            #expect(Set(guest.names(since: before)).isSubset(of: ["unmap_vaddr", "map_vaddr", "change_process"]))
        }
        #expect(guest.requests("refused") == refused && guest.requests("fault") == [])
        #expect(guest.requests("reset").count == 3)
        try guest.end()
    }

    @Test(
        "a device that cannot be saved gives the others everything back",
        arguments: [
            (Arrangement.twoContainers, "unmap_vaddr=16:2", "vfio_dma_unmap_vaddr_all: Device or resource busy"),
            (.twoIOMMUFDs, "change_process=22:4", "some memory regions do not support IOMMU_IOAS_CHANGE_PROCESS"),
            (.mixed, "unmap_vaddr=16:1", "vfio_dma_unmap_vaddr_all: Device or resource busy"),
            // Of the new VMM: the first iommufd is its own already.
            (.twoIOMMUFDs, "change_process=12:6", "IOMMU_IOAS_CHANGE_PROCESS fd"),
        ])
    func secondFails(_ arrangement: Arrangement, _ refusal: String, _ text: String) throws {
        let guest = try guest(arrangement, .msix, ["--refuse", refusal])
        try guest.waitForProgress()
        let vaddrs = (mappings(guest, "map_vaddr"), guest.requests("unmap_vaddr").count)
        let error = #expect(throws: QMPClient.Refusal.self) { try guest.update(nil, ["preflight": false]) }
        #expect(error?.text.contains(text) == true, "\(error?.text ?? "")")
        try guest.waitForProgress()
        #expect(mappings(guest, "map_vaddr") - vaddrs.0 == guest.requests("unmap_vaddr").count - vaddrs.1)
        // All of it is one process' own again, so it can be updated.
        let before = guest.log.count
        try guest.update()
        try guest.waitForProgress()
        #expect(guest.requests.dropFirst(before).allSatisfy { !$0.hasPrefix("refused") })
        #expect(guest.requests("fault") == [] && guest.requests("reset").count == 3)
        try guest.qmp.execute("quit")
        try guest.process.waitForExit()
    }

    @Test("a new VMM that fails leaves all at work in the old one", arguments: Arrangement.allCases)
    func rollback(_ arrangement: Arrangement) throws {
        let guest = try guest(arrangement)
        try guest.waitForProgress()
        // One that lacks the last device, and has taken the others over by then.
        let argv = Array(guest.arguments.dropLast(4) + guest.arguments.suffix(2))
        for argv in [argv, ["/bin/false"]] {
            #expect(throws: QMPClient.Refusal.self) {
                try guest.update(argv, ["preflight": false, "timeout-ms": 30_000])
            }
            try guest.waitForProgress()
        }
        try guest.update()
        try guest.waitForProgress()
        #expect(guest.requests("fault") == [] && guest.requests("reset").count == 3)
        try guest.qmp.execute("quit")
        try guest.process.waitForExit()
        #expect(guest.requests("end ").allSatisfy { $0.contains("faults=0") })
    }

    @Test(
        "a second group's failures have their reasons",
        arguments: [
            (Arrangement.oneContainer, "open_group=13:2", "failed to open /dev/vfio/9: Permission denied"),
            (.oneContainer, "get_device_fd=19:2", "error getting device from group 7: No such device"),
            (.twoContainers, "open_container=24:2", "failed to open /dev/vfio/vfio: Too many open files"),
            (.twoContainers, "map_dma=12:6", "for DMA: Cannot allocate memory"),
            (.twoIOMMUFDs, "open_iommufd=24:2", "Could not open '/dev/iommu': Too many open files"),
            (.oneIOMMUFD, "bind_iommufd=16:2", "vfio 0000:06:0d.1: error bind device"),
        ])
    func refused(_ arrangement: Arrangement, _ refusal: String, _ text: String) throws {
        let errors = try VFIOGuest.errors(arrangement.options + ["--refuse", refusal], arrangement.devices)
        #expect(errors.contains(text), "\(errors)")
    }

    @Test("a group that is open has no devices for an iommufd")
    func groupIsOpen() throws {
        let devices = [
            "-object", "iommufd,id=a", "-device", "vfio-pci,host=\(Self.names[0])",
            "-device", "vfio-pci,host=\(Self.names[1]),iommufd=a",
        ]
        let errors = try VFIOGuest.errors(Self.simulated, devices)
        #expect(errors.contains("error bind device") && errors.contains("Device or resource busy"), "\(errors)")
    }
}
