import BatonRuntime
import Glibc

/// What every VM has to measure: its state, the VMM's process, and its disks.
func registerMachineMetrics(_ vm: VirtualMachine) {
    vm.metrics.add { [unowned vm] in describeMachine(vm) + ProcessMetrics.families + describeDisks(vm) }
}

private func describeMachine(_ vm: VirtualMachine) -> [MetricFamily] {
    var info = MetricFamily("baton_info", .gauge, help: "1, with what the VM and its VMM are as labels.")
    info.add(
        1,
        [
            ("version", BatonVersion.text), ("name", vm.name ?? ""), ("uuid", vm.uuid),
            ("architecture", vm.architecture), ("accelerator", vm.accelerator?.name ?? ""),
        ])
    var state = MetricFamily("baton_run_state", .gauge, help: "1 for the run state that the VM is in, as query-status.")
    state.add(1, [("state", vm.runState.rawValue)])
    return [
        info, state,
        MetricFamily(
            "baton_cpus", .gauge, help: "The guest's CPUs.", value: Double(vm.accelerator?.cpus.count ?? 0)),
        MetricFamily("baton_memory_bytes", .gauge, help: "The guest's memory.", value: Double(vm.ramSize)),
    ]
}

private func describeDisks(_ vm: VirtualMachine) -> [MetricFamily] {
    var requests = MetricFamily(
        "baton_block_requests_total", .counter, help: "Requests that were carried out on a disk.")
    var failures = MetricFamily("baton_block_failures_total", .counter, help: "Requests that failed.")
    var bytes = MetricFamily("baton_block_bytes_total", .counter, help: "Bytes that were read and written.")
    var seconds = MetricFamily(
        "baton_block_request_seconds_total", .counter,
        help: "From taking a request until it was done, summed up; by the number of requests it is their latency.")
    for backend in vm.blockBackends {
        for operation in BlockStatistics.Operation.allCases {
            let totals = backend.statistics[operation]
            let labels = [(name: "disk", value: backend.id), (name: "operation", value: operation.rawValue)]
            requests.add(Double(totals.operations), labels)
            failures.add(Double(totals.failures), labels)
            seconds.add(Double(totals.nanoseconds) / 1e9, labels)
            if operation == .read || operation == .write { bytes.add(Double(totals.bytes), labels) }
        }
    }
    return [requests, failures, bytes, seconds]
}

/// The process' own figures, by the names that Prometheus' client libraries have for them. They begin anew with each
/// update, as every new VMM's do.
private enum ProcessMetrics {
    static var families: [MetricFamily] {
        var usage = rusage()
        getrusage(__rusage_who_t(RUSAGE_SELF.rawValue), &usage)
        func seconds(_ time: timeval) -> Double { Double(time.tv_sec) + Double(time.tv_usec) / 1e6 }
        var families = [
            MetricFamily(
                "process_cpu_seconds_total", .counter, help: "Processor time of the VMM and its guest.",
                value: seconds(usage.ru_utime) + seconds(usage.ru_stime))
        ]
        if let pages = statm {
            families.append(
                MetricFamily(
                    "process_virtual_memory_bytes", .gauge, help: "Address space.",
                    value: Double(pages.size * Mapping.pageSize)))
            families.append(
                MetricFamily(
                    "process_resident_memory_bytes", .gauge, help: "Memory in use, with the guest's.",
                    value: Double(pages.resident * Mapping.pageSize)))
        }
        return families
    }

    /// The first two numbers of /proc/self/statm; nil where there is no /proc.
    private static var statm: (size: Int, resident: Int)? {
        guard let file = try? FD.open("/proc/self/statm", O_RDONLY),
            let bytes = try? FD.readAll(file.raw, limit: 4096, from: "/proc/self/statm")
        else { return nil }
        let numbers = String(decoding: bytes, as: UTF8.self).split(separator: " ").compactMap { Int($0) }
        return numbers.count >= 2 ? (numbers[0], numbers[1]) : nil
    }
}
