import ProcessSupport

/// What of the guest's work goes through the VMM.
extension LabGuest {
    /// Reports to watch it for.
    private static let reportsWatched = 4

    /// Exits of all CPUs since their VMM has them, by KVM's reason.
    private func exits() throws -> [String: Int] {
        guard let cpus = try session.command("x-query-kvm-exits") as? [[String: Any]] else {
            throw Failure("x-query-kvm-exits answers no list")
        }
        var counts: [String: Int] = [:]
        for exit in cpus.compactMap({ $0["exits"] as? [[String: Any]] }).joined() {
            guard let reason = exit["reason"] as? String, let count = exit["count"] as? Int else { continue }
            counts[reason, default: 0] += count
        }
        return counts
    }

    /// Counts exits to the VMM while the guest works.
    /// - Returns: the counts, for the case's line.
    /// - Throws: an error if what has an eventfd each way, queues of virtio-pci, goes through the VMM all the same.
    func watchExits() throws -> String {
        guard let start = reports.last else { throw Failure("the guest has not begun") }
        let before = try exits(), count = reports.count
        try wait(for: "further reports of the guest", seconds: 120) { reports.count >= count + Self.reportsWatched }
        let after = try exits()
        let requests = ["blocks", "frames"].reduce(0) { sum, kind in
            sum + (reports.last?.work[kind] ?? 0) - (start.work[kind] ?? 0)
        }
        func made(_ reason: String) -> Int { (after[reason] ?? 0) - (before[reason] ?? 0) }
        let text = "\(made("mmio")) exits for memory and \(made("io")) for ports with \(requests) blocks and frames"
        let hasEvents = machine.bus == .pci && machine.passedThrough.isEmpty
        guard !hasEvents || made("mmio") * 10 < requests else { throw Failure(text) }
        return text
    }
}
