import BatonRuntime

/// `query-metrics` and `info metrics`: what `-metrics` serves, on a monitor.
func registerMetricsCommands(_ vm: VirtualMachine) throws(VMMError) {
    let label = QMPType.object(name: "MetricLabel", members: [QMPMember("name", .string), QMPMember("value", .string)])
    let sample = QMPType.object(
        name: "MetricSample", members: [QMPMember("labels", .array(label)), QMPMember("value", .number)])
    let family = QMPType.object(
        name: "MetricFamily",
        members: [
            QMPMember("name", .string),
            QMPMember("type", .enumeration(name: "MetricType", values: ["counter", "gauge"])),
            QMPMember("help", .string), QMPMember("samples", .array(sample)),
        ])
    try vm.commands.add(
        QMPCommand.query("query-metrics", returns: .array(family)) { [unowned vm] in
            .array(vm.metrics.collect().map(describe))
        })
    try vm.commands.add(
        HMPCommand.info("metrics", "show figures in Prometheus' text format") { [unowned vm] in
            MetricsText.text(vm.metrics.collect())
        })
}

private func describe(_ family: MetricFamily) -> JSON {
    [
        "name": .string(family.name), "type": .string(family.kind.rawValue), "help": .string(family.help),
        "samples": .array(
            family.samples.map { sample in
                [
                    "labels": .array(sample.labels.map { ["name": .string($0.name), "value": .string($0.value)] }),
                    "value": .double(sample.value),
                ]
            }),
    ]
}
