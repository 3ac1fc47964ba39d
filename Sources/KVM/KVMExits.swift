import BatonRuntime
import CKVM

/// Counts why a CPU has left the guest for this process. Its thread counts, and any may read.
struct KVMExits {
    /// By KVM's number of the reason; the last is for those that are unknown.
    private let counters: UnsafeMutablePointer<UInt64>
    private static let names: [Int32: String] = [
        KVM_EXIT_IO: "io", KVM_EXIT_HLT: "hlt", KVM_EXIT_MMIO: "mmio", KVM_EXIT_SHUTDOWN: "shutdown",
        KVM_EXIT_INTR: "intr", KVM_EXIT_FAIL_ENTRY: "fail-entry", KVM_EXIT_INTERNAL_ERROR: "internal-error",
        KVM_EXIT_SYSTEM_EVENT: "system-event",
    ]
    private static let count = 64

    init() {
        counters = .allocate(capacity: KVMExits.count)
        counters.initialize(repeating: 0, count: KVMExits.count)
    }

    func deallocate() { counters.deallocate() }

    /// - Parameter result: of KVM_RUN; a signal's is an exit too.
    @inline(__always)
    func count(_ run: UnsafeMutablePointer<kvm_run>, _ result: Int32) {
        let reason = result == 0 ? Int(ckvm_exit_reason(run)) : Int(KVM_EXIT_INTR)
        ckvm_count(counters + min(reason, KVMExits.count - 1))
    }

    /// What there was at least one of.
    private var byReason: [(name: String, count: UInt64)] {
        (0..<KVMExits.count).compactMap { reason in
            let count = ckvm_counted(counters + reason)
            guard count > 0 else { return nil }
            return (KVMExits.names[Int32(reason)] ?? "reason-\(reason)", count)
        }
    }

    static func metrics(_ accelerator: KVMAccelerator) -> MetricFamily {
        var family = MetricFamily(
            "baton_cpu_exits_total", .counter, help: "Exits of a CPU from the guest to the VMM, by KVM's reason.")
        for cpu in accelerator.virtualCPUs {
            for exits in cpu.exits.byReason {
                family.add(Double(exits.count), [("cpu", String(cpu.index)), ("reason", exits.name)])
            }
        }
        return family
    }

    // MARK: Monitor

    private static let type = QMPType.object(
        name: "KVMExitInfo",
        members: [
            QMPMember("cpu-index", .int),
            QMPMember(
                "exits",
                .array(
                    .object(name: "KVMExitCount", members: [QMPMember("reason", .string), QMPMember("count", .uint)]))
            ),
        ])

    /// Adds `x-query-kvm-exits`.
    static func register(_ accelerator: KVMAccelerator, _ commands: CommandRegistry) throws(VMMError) {
        try commands.add(
            QMPCommand("x-query-kvm-exits", returns: .array(type)) {
                [unowned accelerator] (_: JSONObject) throws(VMMError) -> JSON in
                .array(
                    accelerator.virtualCPUs.map { cpu in
                        [
                            "cpu-index": JSON(cpu.index),
                            "exits": .array(
                                cpu.exits.byReason.map {
                                    ["reason": .string($0.name), "count": .int(Int64(clamping: $0.count))]
                                }),
                        ]
                    })
            })
    }
}
