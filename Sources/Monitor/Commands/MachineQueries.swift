import BatonRuntime
import Glibc

/// `query-name`, `query-uuid`, `query-cpus-fast`, `query-machines`,
/// `query-target`, `query-kvm`, `query-iothreads`, and their HMP forms.
func registerMachineQueries(_ vm: VirtualMachine, _ context: CoreCommandContext) throws(VMMError) {
    let commands = vm.commands
    try commands.add(
        QMPCommand.query(
            "query-name", returns: .object(name: "NameInfo", members: [QMPMember("name", .string, optional: true)])
        ) { [unowned vm] in
            vm.name.map { ["name": .string($0)] } ?? [:]
        })
    try commands.add(
        HMPCommand.info("name", "show the current VM name") { [unowned vm] in vm.name.map { $0 + "\n" } ?? "" })
    try commands.add(
        QMPCommand.query("query-uuid", returns: .object(name: "UuidInfo", members: [QMPMember("UUID", .string)])) {
            [unowned vm] in ["UUID": .string(vm.uuid)]
        })
    try commands.add(
        HMPCommand.info("uuid", "show the current VM UUID") { [unowned vm] in vm.uuid + "\n" })

    try commands.add(
        QMPCommand.query(
            "query-target",
            returns: .object(
                name: "TargetInfo",
                members: [
                    QMPMember("arch", .enumeration(name: "SysEmuTarget", values: ["riscv64", "x86_64"]))
                ])
        ) { [unowned vm] in ["arch": .string(vm.architecture)] })
    try commands.add(
        QMPCommand.query(
            "query-kvm",
            returns: .object(name: "KvmInfo", members: [QMPMember("enabled", .bool), QMPMember("present", .bool)])
        ) { [unowned vm] in
            ["enabled": .bool(vm.accelerator?.name == "kvm"), "present": .bool(access("/dev/kvm", F_OK) == 0)]
        })
    try commands.add(QMPCommand.query("query-iothreads", returns: .array(.any)) { [] })
    try registerMachines(commands, context)
    try registerCPUs(vm)
}

private func registerMachines(_ commands: CommandRegistry, _ context: CoreCommandContext) throws(VMMError) {
    let machine = QMPType.object(
        name: "MachineInfo",
        members: [
            QMPMember("name", .string), QMPMember("is-default", .bool, optional: true), QMPMember("cpu-max", .int),
            QMPMember("hotpluggable-cpus", .bool), QMPMember("numa-mem-supported", .bool),
            QMPMember("deprecated", .bool), QMPMember("default-cpu-type", .string, optional: true),
            QMPMember("acpi", .bool),
        ])
    try commands.add(
        QMPCommand.query("query-machines", returns: .array(machine)) {
            .array(
                context.machines().map {
                    [
                        "name": .string($0.name), "cpu-max": JSON($0.maximumCPUs), "hotpluggable-cpus": false,
                        "numa-mem-supported": false, "deprecated": false,
                        "default-cpu-type": .string($0.defaultCPUType), "acpi": .bool($0.hasACPI),
                    ]
                })
        })
}

private func registerCPUs(_ vm: VirtualMachine) throws(VMMError) {
    let cpu = QMPType.object(
        name: "CpuInfoFast",
        members: [
            QMPMember("cpu-index", .int), QMPMember("qom-path", .string), QMPMember("thread-id", .int),
            QMPMember("target", .string),
            QMPMember(
                "props",
                .object(
                    name: "CpuInstanceProperties",
                    members: [
                        QMPMember("node-id", .int, optional: true), QMPMember("thread-id", .int, optional: true),
                    ]), optional: true),
        ])
    try vm.commands.add(
        QMPCommand.query("query-cpus-fast", returns: .array(cpu)) { [unowned vm] in
            .array(
                (vm.accelerator?.cpus ?? []).map { cpu -> JSON in
                    var info: JSONObject = [
                        "cpu-index": JSON(cpu.index), "qom-path": .string(cpu.qomPath),
                        "thread-id": .int(Int64(cpu.threadID)), "target": .string(cpu.target),
                    ]
                    if let node = vm.numa?.node(ofCPU: cpu.index) {
                        info["props"] = ["node-id": JSON(node), "thread-id": JSON(cpu.index)]
                    }
                    return .object(info)
                })
        })
    try vm.commands.add(
        HMPCommand.info("cpus", "show infos for each CPU") { [unowned vm] in
            (vm.accelerator?.cpus ?? []).map {
                "\($0.index == 0 ? "*" : " ") CPU #\($0.index): thread_id=\($0.threadID)"
                    + " pc=\(Hex($0.programCounter))\($0.halted ? " (halted)" : "")\n"
            }.joined()
        })
    try vm.commands.add(
        HMPCommand("info registers", parameters: "[-a|cpu]", help: "show the cpu registers") {
            [unowned vm] (line: String) throws(VMMError) -> String in
            guard let accelerator = vm.accelerator else { throw VMMError("No CPU available") }
            let indexes = accelerator.cpus.map(\.index)
            if line == "-a" {
                var text = ""
                vm.whileCPUsStand {
                    for index in indexes { text += "\nCPU#\(index)\n" + accelerator.registers(ofCPU: index) }
                }
                return text
            }
            guard let index = line.isEmpty ? 0 : Int(line), indexes.contains(index) else {
                throw VMMError("CPU index '\(line)' is not a CPU of this machine")
            }
            return "\nCPU#\(index)\n" + accelerator.registers(ofCPU: index)
        })
}
