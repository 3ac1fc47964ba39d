import BatonRuntime
import CBaton
import Glibc

/// Which guest memory the orchestrator can keep.
enum MemoryRules {
    /// Why memory cannot be kept; empty when all can.
    static func blockers(_ memory: GuestMemory, mode: String) -> [VMMError] {
        let reasons = memory.blocks.compactMap { blocker($0, memory, mode: mode) }
        return reasons.isEmpty ? shortage(memory).map { [$0] } ?? [] : reasons
    }

    private static func blocker(_ block: RAMBlock, _ memory: GuestMemory, mode: String) -> VMMError? {
        let volatility = memory.volatility(
            of: block, remedy: "-cpr-enable \(mode) is required.",
            backendRemedy: "A memory-backend-memfd with share=on is required, or a memory-backend-file on a disk.")
        if let volatility { return volatility }
        // It is in its file, on a disk or on persistent memory, as in mode reboot.
        if block.isPersistent { return nil }
        if cbaton_huge_page_size(block.fd) != 0 {
            return VMMError(
                "Memory region \(block.name) is of huge pages (hugetlb), which the Live Update Orchestrator cannot keep",
                hint: "Leave hugetlb=on out.")
        }
        // As the kernel knows one (memfd_luo_can_preserve in mm/memfd_luo.c): memory without a name.
        var status = stat()
        guard fstat(block.fd, &status) != 0 || status.st_nlink > 0 || cbaton_is_memory_file(block.fd) == 0 else {
            return nil
        }
        return VMMError(
            "Memory region \(block.name) is in '\(FD.path(block.fd) ?? "")', a file that ends with the host's kernel",
            hint: "A memory-backend-memfd can be kept.")
    }

    /// Whether the host has the memory that it takes: to keep a block allocates all of its pages.
    private static func shortage(_ memory: GuestMemory) -> VMMError? {
        guard let figure = try? HostMemory.figure("MemAvailable"), let available = Int(exactly: figure) else {
            return nil
        }
        var missing = 0
        for block in memory.blocks where !block.isPersistent {
            var status = stat()
            guard fstat(block.fd, &status) == 0 else { continue }
            missing += max(0, Int(status.st_size) - Int(status.st_blocks) * 512)
        }
        guard missing > available else { return nil }
        return VMMError(
            "the host has \(available >> 20) MiB of memory left, and \(missing >> 20) MiB of the guest's are not "
                + "allocated yet, which they must be to be kept",
            hint: "Free memory on the host, or hand fewer guests over at a time.")
    }
}
