import BatonBase
import BatonMachine

extension CprController {
    /// How often the guest was updated, and how long it paused for the last update.
    func registerMetrics() {
        vm.metrics.add { [unowned self] in metrics }
    }

    private var metrics: [MetricFamily] {
        var families = [
            MetricFamily(
                "baton_updates_total", .counter, help: "Updates that the guest has been through, in all of its VMMs.",
                value: Double(times.generation))
        ]
        if let last = history.records.last {
            families.append(
                MetricFamily(
                    "baton_last_update_success", .gauge,
                    help: "Whether the last update took place (1) or led back to the old VMM (0).",
                    value: last.failure == nil ? 1 : 0))
            families.append(
                MetricFamily(
                    "baton_last_update_timestamp_seconds", .gauge, help: "When the last update ended, since 1970.",
                    value: Double(last.endedAt) / 1e9))
        }
        if let phases = times.report?.objectValue {
            var pause = MetricFamily(
                "baton_update_seconds", .gauge,
                help: "What the last update that took place has cost: the guest's pause, its phases, and what came "
                    + "before it while the guest ran.")
            for (name, value) in phases.members {
                pause.add(Double(value.intValue ?? 0) / 1e6, [("phase", String(name.dropLast("-us".count)))])
            }
            families.append(pause)
        }
        return families
    }
}
